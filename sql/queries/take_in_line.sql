-- Take messages that are in line, in order, so many of each scope at most (R11): for the claim's owner alone, under the guard of its
-- claims. None where something of the scope that is before it is unfinished, whoever holds that, or has a name that this program does
-- not know. They stay queued until their turn comes. Locks what it takes; a second run takes the next ones. Index workflows_scope.
with heads as materialized (
  select h.id from unnest(%(scopes)b::text[]) as asked (scope) cross join lateral (
    select w.id from eventflow.workflows w
     where w.scope = asked.scope and w.status = 'queued' and w.executor = 0 and w.name = any(%(names)b::text[])
       and not exists (
         select from eventflow.workflows p
          where p.scope = w.scope and p."offset" < w."offset" and (p.executor is distinct from 0 or p.name <> all(%(names)b::text[]))
            and p.status in ('queued', 'running', 'waiting', 'parked'))
     order by w."offset" limit %(limit)b::int for update
  ) h
)
update eventflow.workflows w set executor = %(executor)b::bigint from heads where w.id = heads.id
returning w.id, w.name, w.status::text, w.attempt, w.retries, w.recoveries, w.claim, w."offset", w.timestamp,
          w.arguments, w.key, w.value, w.headers, w.parent, extract(epoch from w.deadline)::float8, w.generation, w.queue, w.scope
