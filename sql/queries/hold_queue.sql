-- One process at a time takes from a queue that has limits: what it counts next, nobody changes meanwhile. Not the queue's row, which
-- people and new processes change.
select pg_advisory_xact_lock(hashtextextended('eventflow.queue ' || %(application)b::text || ' ' || %(queue)b::text, 0))
