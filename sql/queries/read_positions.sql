-- What is accepted of these claims: folded ranges and deltas of every epoch (R5). A statement after take_claims.
select c.id, c.accepted + coalesce((select range_agg(r) from eventflow.deltas d, unnest(d.ranges) r where d.claim = c.id), '{}')
  from eventflow.claims c where c.id = any(%(claims)b::bigint[])
