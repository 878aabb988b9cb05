-- All that an idle process asks, once per beat: renew the lease; is the timeline the same, or all that was acknowledged still there
-- (EF003); who else lives; what nobody holds, what people ask, who sleeps, until when; what has come into queues, when is the next
-- due, of schedules too; what is redelivered, run again, paused; who relays, is anything there for him. Touches only its own beat;
-- indexes workflows_executor, workflows_wake, workflows_arrivals, workflows_delayed.
with renewed as (
  update eventflow.beats set beat = beat + 1, at = now() where executor = %(executor)b::bigint returning 1
)
select (select count(*) from renewed),
       coalesce((select alive from eventflow.executors where id = %(executor)b::bigint), false),
       (select timeline = '' or timeline = eventflow.timeline() from eventflow.executors where id = %(executor)b::bigint),
       coalesce((select jsonb_object_agg(e.id, b.beat) from eventflow.executors e join eventflow.beats b on b.executor = e.id
                  where e.alive and e.application = %(application)b::text and e.id <> %(executor)b::bigint), '{}'),
       exists (select from eventflow.workflows where executor is null and status in ('queued', 'running')
                  and application = %(application)b::text),
       exists (select from eventflow.requests r join eventflow.workflows w on w.id = r.workflow_id
                where w.executor = %(executor)b::bigint and w.status in ('queued', 'running', 'waiting') and not r.settled),
       exists (select from eventflow.workflows where status = 'waiting' and executor is null
                  and application = %(application)b::text),
       (select extract(epoch from min(wake_at))::float8 from eventflow.workflows where status = 'waiting' and executor is null
           and application = %(application)b::text and name = any(%(names)b::text[])
           and (queue is null or queue = any(%(queues)b::text[]))),
       exists (select from eventflow.workflows where executor = 0 and placed is not null and application = %(application)b::text
                  and queue = any(%(queues)b::text[]) and placed >= %(since)b::text::xid8)
         or exists (select from eventflow.workflows where executor = 0 and placed is not null and application = %(application)b::text
                       and queue = any(%(queues)b::text[]) and placed = any(%(missed)b::text[]::xid8[])),
       (select extract(epoch from min(wake_at))::float8 from eventflow.workflows where executor = 0 and placed is null
           and application = %(application)b::text and queue = any(%(queues)b::text[])),
       (select extract(epoch from min(due_at))::float8 from eventflow.schedules
         where application = %(application)b::text and due_at is not null and workflow = any(%(scheduled)b::text[])
           and (%(schedules)b::text[] is null or name = any(%(schedules)b::text[]))),
       exists (select from eventflow.redeliveries where application = %(application)b::text and ended_at is null),
       (select jsonb_build_array(
                 r.epoch, r.holder, coalesce(e.alive, false), b.beat,
                 case when exists (select from eventflow.outbox_batches) then true else exists (select from eventflow.outbox) end,
                 exists (select from eventflow.outbox where id > %(low)b::bigint)
                   or exists (select from eventflow.undelivered where wanted is not null))
          from eventflow.relay r left join eventflow.executors e on e.id = r.holder left join eventflow.beats b on b.executor = r.holder),
       coalesce((select jsonb_agg(jsonb_build_array(
                   r.id, r."group", s.topic, r.generation, r.instead, r.rate,
                   (select jsonb_agg(jsonb_build_array(p.partition, c.generation))
                      from eventflow.reprocessed p join eventflow.claims c on c.id = p.claim where p.reprocessing = r.id)))
                  from eventflow.reprocessings r join eventflow.sources s on s.id = r.source where r.ended_at is null), '[]'),
       coalesce((select jsonb_agg(jsonb_build_array(
                   p."group", nullif(p.topic, ''), nullif(p.partition, -1), p.who, p.why, p.at)) from eventflow.pauses p), '[]'),
       extract(epoch from clock_timestamp())::float8,
       eventflow.check_acknowledged(%(executor)b::bigint, %(acknowledged)b::bigint[])::text
