-- All that tells why a workflow does not run: who holds it, what it waits behind and for, its queue's limits and what is used up of
-- them, its last failure, what people asked of it. Reads only; counts what stands in its queue and its scope.
select w.id, w.name, w.status::text, w.executor, w.attempt, w.created_at, w.finished_at, w.wake_at, w.reason, w.error,
       w.claim is not null as message, w.queue, w.queue_key, w.placed is not null as placed, now() as now,
       e.alive, e.host, e.pid, e.died_at, extract(epoch from now() - b.at)::float8 as silent,
       (select count(*) from eventflow.executors x where x.alive and x.application = w.application and x.names ? w.name) as known,
       (select count(*) from eventflow.executors x where x.alive and x.application = w.application and x.names ? w.name
           and (w.queue is null or x.queues is null or w.queue = any(x.queues))) as served,
       (select count(*) from eventflow.executors x
         where x.alive and x.application = w.application and x.id is distinct from w.executor) as peers,
       f.failures, f.failed_with, h.id as head, h.status as head_status, h.reason as head_reason, h.wake_at as head_wake_at,
       (select count(*) from eventflow.workflows o where o.scope = w.scope and o."offset" < w."offset"
           and o.status in ('queued', 'running', 'waiting', 'parked')) as ahead,
       (select count(*) from eventflow.workflows o where o.scope = w.scope and o."offset" > w."offset"
           and o.status in ('queued', 'running', 'waiting', 'parked')) as behind,
       w.scope like '%%:%%' as by_key, q.paused, q.changed_by, q.changed_at, q.settings::text as settings, q.begun, q.begun_of_key,
       q.least, q.before, q.started, q.next_at, q.started_of_key, q.next_of_key_at,
       (select array_agg(v.target || ' ' || coalesce(t.status::text, 'gone') order by v.target)
          from eventflow.watches v left join eventflow.workflows t on t.id = v.target
         where v.workflow_id = w.id and v.key = '') as ends,
       (select array_agg(v.target || ' ' || v.key order by v.target, v.key) from eventflow.watches v
         where v.workflow_id = w.id and v.key <> '') as events,
       exists (select from eventflow.signals s where s.workflow_id = w.id) as signalled,
       (select array_agg(c.id || ' ' || c.status order by c.created_at, c.id) from eventflow.workflows c
         where c.parent = w.id and c.status in ('queued', 'running', 'waiting', 'parked')) as children,
       (select m.topics from (select array_agg(distinct m.topic order by m.topic) as topics from eventflow.messages m
         where m.workflow_id = w.id and not m.consumed) m) as inbox,
       (select r.kind || ' ' || r.who from eventflow.requests r
         where r.workflow_id = w.id and not r.settled and r.kind in ('cancel', 'terminate') order by r.id limit 1) as asked,
       (select r.id from eventflow.redeliveries r
         where r.ended_at is null and exists (select from eventflow.redelivery_items i
                 where i.redelivery = r.id and i.name = w.name and i.workflow_id = w.id) limit 1) as redelivery,
       o.owner, o.owner_alive, (select i.id from eventflow.incidents i
                                 where i.claim = w.claim and i.went_on_at is null order by i.id limit 1) as incident
  from eventflow.workflows w
  left join eventflow.executors e on e.id = w.executor
  left join eventflow.beats b on b.executor = w.executor
  left join lateral (select count(*) as failures, (array_agg(f.type order by f.id desc))[1] as failed_with
                       from eventflow.failures f where f.workflow_id = w.id) f on true
  left join lateral (select p.id, p.status::text, p.reason, p.wake_at from eventflow.workflows p
                      where p.scope = w.scope and p."offset" < w."offset" and p.status in ('queued', 'running', 'waiting', 'parked')
                      order by p."offset" limit 1) h on true
  left join lateral (select c.owner, coalesce(x.alive, false) as owner_alive from eventflow.claims c
                       left join eventflow.executors x on x.id = c.owner where c.id = w.claim) o on true
  left join lateral (
    select l.paused, l.changed_by, l.changed_at, l.settings,
           (select count(*) from eventflow.workflows s where s.taken is not null and s.status in ('queued', 'running', 'waiting')
               and s.application = w.application and s.queue = w.queue) as begun,
           (select count(*) from eventflow.workflows s where s.taken is not null and s.status in ('queued', 'running', 'waiting')
               and s.application = w.application and s.queue = w.queue and s.queue_key = w.queue_key) as begun_of_key,
           (select min(n) from (
              select count(s.id) as n from eventflow.executors x
                left join eventflow.workflows s on s.executor = x.id and s.queue = w.queue and s.taken is not null
                     and s.status in ('queued', 'running', 'waiting')
               where x.alive and x.application = w.application and x.names ? w.name
                 and (x.queues is null or w.queue = any(x.queues)) group by x.id) held) as least,
           (select count(*) from eventflow.workflows s where s.executor = 0 and s.placed is not null and s.application = w.application
               and s.queue = w.queue and (s.priority < w.priority
                 or s.priority = w.priority and s.queue_key = w.queue_key and (s.placed, s.place) < (w.placed, w.place))) as before,
           r.n as started, r.next_at, k.n as started_of_key, k.next_at as next_of_key_at
      from (select p.paused, p.changed_by, p.changed_at, p.defined || p.changed as settings from eventflow.queues p
             where p.application = w.application and p.name = w.queue) l
      left join lateral (
        select sum(s.n)::bigint as n, min(s.at) + make_interval(secs => (l.settings -> 'rate' ->> 1)::float8) as next_at
          from eventflow.queue_starts s where s.application = w.application and s.queue = w.queue
           and s.at > now() - make_interval(secs => (l.settings -> 'rate' ->> 1)::float8)) r on true
      left join lateral (
        select sum(s.n)::bigint as n, min(s.at) + make_interval(secs => (l.settings -> 'rate_per_key' ->> 1)::float8) as next_at
          from eventflow.queue_starts s where s.application = w.application and s.queue = w.queue and s.key = w.queue_key
           and s.at > now() - make_interval(secs => (l.settings -> 'rate_per_key' ->> 1)::float8)) k on true
  ) q on true
 where w.id = %(id)b::text
