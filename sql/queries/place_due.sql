-- Those whose time has come go to the end of their lines, in batches. Locks what it moves, skipping what a peer moves; a later call
-- with the deduplication id of one that settled begins anew. Index workflows_delayed.
with due as materialized (
  select id from eventflow.workflows
   where executor = 0 and placed is null and status = 'queued' and wake_at <= now() and application = %(application)b::text
     and queue = any(%(queues)b::text[])
   order by wake_at limit 1000 for update skip locked
)
update eventflow.workflows w
   set placed = pg_current_xact_id(), place = (extract(epoch from w.wake_at) * 1000000)::bigint, wake_at = null,
       deduplication_id = case when w.settles_by is null then w.deduplication_id end
  from due where w.id = due.id
returning 1
