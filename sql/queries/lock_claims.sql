-- What the former owners left, under the lock that the claim's UPDATE takes anyway (R7); of each partition the generation that
-- goes on. Waits for every open flush of these partitions, which hold the rows FOR SHARE.
select id, partition, released, in_flight, verified, generation, leader_epoch, epoch_to from eventflow.claims
 where "group" = %(group)b::text and source = %(source)b::bigint and partition = any(%(partitions)b::int[]) and not ended
 order by id for no key update
