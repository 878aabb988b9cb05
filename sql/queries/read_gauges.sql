-- What only the ledger knows of an application, for who watches it: a kind, a label, a number. Counts of up to 10,000, and no further.
-- Reads; indexes workflows_arrivals, workflows_dead.
select 'queue_depth' as kind, q.name as label, (
         select count(*) from (
           select from eventflow.workflows w where w.executor = 0 and w.placed is not null and w.application = q.application
              and w.queue = q.name limit 10000) waiting)::float8 as number
  from eventflow.queues q where q.application = %(application)b::text
union all
select 'queue_age_seconds', q.name, coalesce((
         select greatest(0, extract(epoch from clock_timestamp()) - w.place / 1000000.0)
           from eventflow.workflows w where w.executor = 0 and w.placed is not null and w.application = q.application
            and w.queue = q.name order by w.placed limit 1), 0)::float8
  from eventflow.queues q where q.application = %(application)b::text
union all
select 'dead_letters_open', l.name, count(*)::float8 from (
         select w.name from eventflow.workflows w
          where w.claim is not null and w.status in ('failed', 'parked') and w.application = %(application)b::text limit 10000) l
 group by l.name
union all
select 'outbox_events', '', (select count(*) from (select from eventflow.outbox limit 10000) o)::float8
union all
select 'outbox_age_seconds', '', coalesce((
         select greatest(0, extract(epoch from clock_timestamp() - o.at)) from eventflow.outbox o order by o.id limit 1), 0)::float8
union all
select 'undelivered_events', '', (select count(*) from (select from eventflow.undelivered limit 10000) u)::float8
union all
select 'incidents_open', i.kind, count(*)::float8 from eventflow.incidents i where i.settled_at is null group by i.kind
