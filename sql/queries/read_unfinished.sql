-- Accepted messages of these claims that are not final, by scope: which of them hold it back, and where the line begins and ends of
-- which only the claim's owner takes (R7, R11). Index workflows_claim.
select claim, scope, coalesce(array_agg(id) filter (where executor is distinct from 0), '{}'),
       min("offset") filter (where executor = 0), max("offset") filter (where executor = 0)
  from eventflow.workflows
 where claim = any(%(claims)b::bigint[]) and scope is not null and status in ('queued', 'running', 'waiting', 'parked')
 group by claim, scope
