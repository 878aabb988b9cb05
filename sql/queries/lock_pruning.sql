-- One process prunes at a time; the lock ends with the transaction.
select pg_try_advisory_xact_lock(hashtextextended(%(name)b::text, 0))
