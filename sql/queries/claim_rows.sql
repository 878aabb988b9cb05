-- Take runnable rows that nobody holds, in small batches (R10a): not before their time, not behind their scope (R11).
-- Locks the rows it takes, skipping those that a peer takes; a second run takes the next ones.
with taken as (
  select w.id from eventflow.workflows w
   where w.executor is null and w.status in ('queued', 'running') and w.application = %(application)b::text
     and w.name = any(%(names)b::text[]) and (w.wake_at is null or w.wake_at <= now())
     and (w.queue is null or w.queue = any(%(queues)b::text[]))
     and (w.scope is null or not exists (
       select from eventflow.workflows p
        where p.scope = w.scope and p."offset" < w."offset" and p.status in ('queued', 'running', 'waiting', 'parked')))
   order by w.claim, w."offset" limit %(limit)b::int for update skip locked
)
update eventflow.workflows w set executor = %(executor)b::bigint from taken where w.id = taken.id
returning w.id, w.name, w.status::text, w.attempt, w.retries, w.recoveries, w.claim, w."offset", w.timestamp,
          w.arguments, w.key, w.value, w.headers, w.parent, extract(epoch from w.deadline)::float8, w.generation, w.queue
