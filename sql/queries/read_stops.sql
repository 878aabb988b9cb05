-- What stops these claims: the oldest incident of each that it has not gone on after, and what was chosen, if anything was.
-- Index incidents_claim.
select distinct on (claim) claim, id, kind, first_offset, choice, detail from eventflow.incidents
 where claim = any(%(claims)b::bigint[]) and went_on_at is null order by claim, id
