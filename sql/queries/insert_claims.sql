-- A partition that the ledger has never seen: its first position, chosen once and kept (from then on only the ledger counts).
-- A second run, or a peer that was quicker, changes nothing, and is told of nothing.
insert into eventflow.claims ("group", source, partition, owner, epoch, accepted, in_flight, verified, began)
select %(group)b::text, %(source)b::bigint, partition, 0, 0,
       int8multirange(int8range(null, position)), 0, position, began
  from unnest(%(partition)b::int[], %(position)b::bigint[], %(began)b::text[]) as t (partition, position, began)
 order by partition
on conflict ("group", source, partition, generation) do nothing
returning id, partition
