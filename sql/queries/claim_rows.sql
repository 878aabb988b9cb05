-- Take runnable rows that nobody holds, in small batches (R10a): not before their time, not behind their scope (R11); what is kept in
-- order for whoever owns its claim, who may have others of its scope in memory, and for all while nobody does who lives and knows it.
-- Locks the rows it takes, and the claims of those in order FOR SHARE: whoever claims next reads that they are taken. Skips what is
-- locked; a second run takes the next ones. `running`: also those that were under way when their process died.
with plain as (
  select w.id from eventflow.workflows w
   where w.executor is null and w.status in ('queued', 'running') and w.application = %(application)b::text
     and (w.status = 'queued' or %(running)b::boolean)
     and w.name = any(%(names)b::text[]) and (w.wake_at is null or w.wake_at <= now()) and w.scope is null
     and (w.queue is null or w.queue = any(%(queues)b::text[]))
   order by w.claim, w."offset" limit %(limit)b::int for update skip locked
), in_order as (
  select w.id from eventflow.workflows w join eventflow.claims c on c.id = w.claim
   where w.executor is null and w.status in ('queued', 'running') and w.application = %(application)b::text
     and (w.status = 'queued' or %(running)b::boolean)
     and w.name = any(%(names)b::text[]) and (w.wake_at is null or w.wake_at <= now()) and w.scope is not null
     and not exists (
       select from eventflow.workflows p
        where p.scope = w.scope and p."offset" < w."offset" and p.status in ('queued', 'running', 'waiting', 'parked'))
     and (c.owner = %(executor)b::bigint or c.released or not exists (
       select from eventflow.executors e where e.id = c.owner and e.alive and e.names ? w.name))
   order by w.claim, w."offset" limit %(limit)b::int for update of w skip locked for share of c skip locked
), taken as (
  select id from plain union all select id from in_order
)
update eventflow.workflows w set executor = %(executor)b::bigint from taken where w.id = taken.id
returning w.id, w.name, w.status::text, w.attempt, w.retries, w.recoveries, w.claim, w."offset", w.timestamp,
          w.arguments, w.key, w.value, w.headers, w.parent, extract(epoch from w.deadline)::float8, w.generation, w.queue
