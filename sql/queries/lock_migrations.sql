-- One process migrates a schema at a time; the lock ends with the transaction. What is missing is read after it.
select pg_advisory_xact_lock(hashtextextended('eventflow.migrate ' || %(schema)b::text, 0))
