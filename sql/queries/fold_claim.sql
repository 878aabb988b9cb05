-- Fold a claim's deltas into its row; the owner's chore between its flushes (R5). Returns what is accepted.
-- Locks: own identity, the claim FOR UPDATE. Deletes exactly what it read; a second run finds nothing to fold.
select eventflow.fold(%(executor)b::bigint, %(claim)b::bigint, %(epoch)b::bigint)
