-- The relay's fence, and: the highest batch is out, its events go (R17). Raises EF001, EF003, EF004. Locks the relay's row FOR SHARE.
-- A second run finds them gone.
select eventflow.settle_batch(%(epoch)b::bigint, %(last)b::bigint)
