-- What is accepted of these claims: folded ranges and deltas of every epoch (R5), and whose leader's the last message was that
-- the newest delta tells of, -1: none does. A statement after take_claims.
select c.id, c.accepted + coalesce(d.ranges, '{}'), coalesce(d.last[2], -1), coalesce(d.last[1], 0)
  from eventflow.claims c,
       lateral (select range_agg(r) as ranges, max(array[d.epoch_to, d.leader_epoch]) filter (where d.leader_epoch >= 0) as last
                  from eventflow.deltas d, unnest(d.ranges) r where d.claim = c.id) d
 where c.id = any(%(claims)b::bigint[])
