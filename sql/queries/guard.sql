-- The first statement of every flush: own identity, flush number, claims (R1-R5). Raises EF001, EF002, EF003.
-- Locks: executors FOR KEY SHARE, the new flushes row, claims FOR SHARE in order of id.
-- A second run with the same number is refused by the primary key of flushes.
select eventflow.guard(
  %(executor)b::bigint, %(lane)b::int, %(n)b::bigint, %(nonce)b::bigint, %(claims)b::bigint[], %(epochs)b::bigint[],
  %(acknowledged)b::bigint[]
)
