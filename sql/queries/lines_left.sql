-- The first message of each scope that is unfinished, but for these, and whether it is in line for this program: what is left where a
-- line has been taken from (R11). Index workflows_scope.
select asked.scope, f.id, f.executor is not distinct from 0 and f.name = any(%(names)b::text[])
  from unnest(%(scopes)b::text[]) as asked (scope) cross join lateral (
    select w.id, w.executor, w.name from eventflow.workflows w
     where w.scope = asked.scope and w.status in ('queued', 'running', 'waiting', 'parked') and w.id <> all(%(taken)b::text[])
     order by w."offset" limit 1
  ) f
