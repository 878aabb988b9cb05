-- Wake those whose time has come or for whom something came, in batches (R10a); charged to nobody. Locks what it takes, skipping what
-- a peer takes. A signal to one that does not sleep yet stays until it does; one to what has ended goes. It walks by workflows, 10,000
-- behind a given one: what many others are sent hides nobody's. Each row, and there is one at least, says where to go on; null: from
-- the beginning. Indexes workflows_wake, signals_workflow.
with recursive walk (id) as (
  (select workflow_id from eventflow.signals where workflow_id > %(after)b::text order by workflow_id limit 1)
  union all
  select (select s.workflow_id from eventflow.signals s where s.workflow_id > walk.id order by s.workflow_id limit 1)
    from walk where walk.id is not null
), signalled as materialized (
  select id from walk where id is not null limit 10000
), due as materialized (
  select id from eventflow.workflows
   where status = 'waiting' and executor is null and wake_at <= now() and application = %(application)b::text
     and name = any(%(names)b::text[]) and (queue is null or queue = any(%(queues)b::text[]))
   order by wake_at limit %(limit)b::int for update skip locked
), called as materialized (
  select w.id from eventflow.workflows w
   where w.id in (select id from signalled) and w.status = 'waiting' and w.executor is null
     and w.application = %(application)b::text and w.name = any(%(names)b::text[])
     and (w.queue is null or w.queue = any(%(queues)b::text[]))
   limit %(limit)b::int for update skip locked
), ended as materialized (
  select w.id from eventflow.workflows w where w.id in (select id from signalled) and w.finished_at is not null
), woken as (
  select id from due union select id from called
), signals as (
  delete from eventflow.signals where workflow_id in (select id from woken union all select id from ended)
), watches as (
  delete from eventflow.watches where workflow_id in (select id from woken)
), taken as (
  update eventflow.workflows w set executor = %(executor)b::bigint, status = 'running', attempt = attempt + 1, wake_at = null
    from woken where w.id = woken.id
  returning w.id, w.name, w.status::text, w.attempt, w.retries, w.recoveries, w.claim, w."offset", w.timestamp,
            w.arguments, w.key, w.value, w.headers, w.parent, extract(epoch from w.deadline)::float8, w.generation, w.queue
)
select taken.*, walked.last
  from (select case when count(*) >= 10000 then max(id) end as last from signalled) walked left join taken on true
