-- Accepted messages of these claims that are not final: they hold their scope back (R7, R11).
-- Index workflows_claim.
select id, claim, scope, "offset", executor from eventflow.workflows
 where claim = any(%(claims)b::bigint[]) and status in ('queued', 'running', 'waiting', 'parked')
