-- A clean end: what is still held is let go of, and the identity is closed (R8a). After the last flush.
select eventflow.die(%(executor)b::bigint)
