-- Where a partition goes on after an incident (R16): settles it where a policy has chosen, and has what is skipped accepted.
-- Locks: own identity, the claim FOR UPDATE, the incident. A second run finds the incident done with.
select eventflow.go_on(
  %(executor)b::bigint, %(claim)b::bigint, %(epoch)b::bigint, %(incident)b::bigint, %(choice)b::text, %(who)b::text,
  %(skip_from)b::bigint, %(next)b::bigint, %(anew)b::boolean
)
