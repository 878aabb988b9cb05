-- What the former owners left, under the lock that the claim's UPDATE takes anyway (R7); of each partition the generation that
-- goes on, the live one's or a reprocessing's. Waits for every open flush of these partitions, which hold the rows FOR SHARE.
select id, partition, released, in_flight, verified, generation, leader_epoch, epoch_to from eventflow.claims
 where "group" = %(group)b::text and source = %(source)b::bigint and partition = any(%(partitions)b::int[]) and not ended
   and reprocessing is not distinct from %(reprocessing)b::bigint
 order by id for no key update
