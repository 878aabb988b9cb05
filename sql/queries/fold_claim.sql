-- Fold a claim's deltas into its row; the owner's chore between its flushes (R5). Returns what is accepted.
-- Locks: own identity, the claim FOR UPDATE. Deletes exactly what it read; a second run finds nothing to fold.
-- Raises EF002, EF005 (offsets accepted twice), EF007 (the topic was recreated).
select eventflow.fold(
  %(executor)b::bigint, %(claim)b::bigint, %(epoch)b::bigint, %(verified)b::bigint, %(leader_epoch)b::int,
  %(epoch_to)b::bigint
)
