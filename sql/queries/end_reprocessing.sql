-- Whether a reprocessing is through; then it ends, once. Locks own identity, and at the end its claims.
select eventflow.end_reprocessing(%(executor)b::bigint, %(reprocessing)b::bigint)
