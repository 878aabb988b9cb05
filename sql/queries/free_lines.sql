-- Messages in line of these claims, whose consumer keeps no keys in order any more, or which nobody holds, since they are read through:
-- whoever comes first takes them, in order of their scope (R11). Locks what it frees; a second run finds none. Index workflows_claim.
update eventflow.workflows set executor = null
 where claim = any(%(claims)b::bigint[]) and executor = 0 and status = 'queued' and scope is not null
