-- Which workflows fill a place in a queue: of those that were known to, who still does, and who has come since a snapshot (as in
-- arrivals.sql). By primary key, and by index workflows_slots.
select s.snapshot, s.own, a.id, a.queue_key
  from (select pg_current_snapshot()::text as snapshot, pg_current_xact_id()::text as own) s
  left join lateral (
    select w.id, w.queue_key from eventflow.workflows w
     where w.id = any(%(known)b::text[]) and w.taken is not null and w.status in ('queued', 'running', 'waiting')
    union
    select w.id, w.queue_key from eventflow.workflows w
     where w.application = %(application)b::text and w.queue = %(queue)b::text and w.taken >= %(since)b::text::xid8
       and w.taken is not null and w.status in ('queued', 'running', 'waiting')
    union
    select w.id, w.queue_key from eventflow.workflows w
     where w.application = %(application)b::text and w.queue = %(queue)b::text and w.taken = any(%(missed)b::text[]::xid8[])
       and w.taken is not null and w.status in ('queued', 'running', 'waiting')
  ) a on true
