-- Claims on older incarnations of these partitions end: what is in flight under them is refused from now on (R16). Returns
-- which offsets of them may be the new incarnation's: accepted, and read after the topic was last seen to be the same.
-- Locks in order of id before it writes; waits for every open flush that holds one FOR SHARE, as take_claims does.
with former as materialized (
  select c.id, o.incarnation, c.ended or c.reprocessing is not null as ended from eventflow.claims c join eventflow.sources o on o.id = c.source
    join eventflow.sources s on s.topic = o.topic and o.incarnation < s.incarnation
   where s.id = %(source)b::bigint and c."group" = %(group)b::text and c.partition = any(%(partitions)b::int[])
   order by c.id for no key update of c
)
update eventflow.claims c set owner = 0, epoch = epoch + 1 from former where c.id = former.id
returning c.id, former.incarnation, c.partition, c.verified, c.generation, former.ended
