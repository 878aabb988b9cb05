-- The relay's fence, and: the highest batch is not out, and never will be: it was none (R17). Raises EF001, EF003.
select eventflow.void_batch(%(epoch)b::bigint, %(last)b::bigint)
