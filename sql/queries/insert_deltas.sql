-- Append the ranges that this flush accepts, per claim (R5). Never an absolute position.
-- Runs after guard, which holds the claims; appended rows lock nothing of others.
insert into eventflow.deltas (claim, epoch, ranges)
select claim, epoch, ranges::int8multirange
  from unnest(%(claims)b::bigint[], %(epochs)b::bigint[], %(ranges)b::text[]) as t (claim, epoch, ranges)
