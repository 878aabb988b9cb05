-- Whose flush was committed under this number: ours, or an earlier one of ours (R3).
-- Reads by the primary key of flushes.
select nonce from eventflow.flushes
 where executor = %(executor)b::bigint and lane = %(lane)b::int and n = %(n)b::bigint
