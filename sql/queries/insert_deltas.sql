-- Append the ranges that this flush accepts, per claim (R5), and whose leader's the last message was (R16). Never an absolute
-- position. Runs after guard, which holds the claims; appended rows lock nothing of others.
insert into eventflow.deltas (claim, epoch, ranges, leader_epoch, epoch_to)
select claim, epoch, ranges::int8multirange, leader_epoch, epoch_to
  from unnest(
         %(claims)b::bigint[], %(epochs)b::bigint[], %(ranges)b::text[], %(leader_epochs)b::int[], %(epochs_to)b::bigint[]
       ) as t (claim, epoch, ranges, leader_epoch, epoch_to)
