-- What an application has published and no relay has taken, oldest first, for a test harness, in which nothing does. Reads only; scans
-- the outbox.
select topic, key, value, headers from eventflow.outbox where %(topic)b::text is null or topic = %(topic)b::text order by id
