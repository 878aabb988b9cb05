-- The first statement of every writing transaction that is no flush (R2). Raises EF001, EF003.
select eventflow.fence(%(executor)b::bigint)
