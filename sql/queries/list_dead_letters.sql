-- A page of dead letters, oldest first, after the one that the last page ended with: where each was in Kafka, and what it failed
-- with. By the index workflows_dead.
select workflow_id, name, "group", topic, incarnation, partition, "offset", timestamp, status, attempt, failures,
       created_at, first_failed_at, last_failed_at, error, reason, key
  from eventflow.dead_letters(
    null, %(consumer)b::text, %(group)b::text, %(topic)b::text, %(partition)b::int, %(key)b::bytea, %(error_type)b::text,
    %(status)b::text, %(failed_after)b::timestamptz, %(failed_before)b::timestamptz)
 where (%(after_id)b::text is null
        or (created_at, workflow_id) > (%(after_time)b::timestamptz, %(after_id)b::text collate "C"))
 order by created_at, workflow_id limit 500
