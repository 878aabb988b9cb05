-- Queues as people see them, how many wait in each, are to come, and have begun and not ended, and since when the first one waits.
-- Reads all of these.
select q.name, (q.defined || q.changed)::text, q.paused, q.changed_by, q.changed_at,
       (select count(*) from eventflow.workflows w where w.executor = 0 and w.placed is not null
           and w.application = q.application and w.queue = q.name),
       (select count(*) from eventflow.workflows w where w.executor = 0 and w.placed is null
           and w.application = q.application and w.queue = q.name),
       (select count(*) from eventflow.workflows w where w.taken is not null and w.status in ('queued', 'running', 'waiting')
           and w.application = q.application and w.queue = q.name),
       (select to_timestamp(min(w.place) / 1000000.0) from eventflow.workflows w where w.executor = 0 and w.placed is not null
           and w.application = q.application and w.queue = q.name)
  from eventflow.queues q where q.application = %(application)b::text order by q.name
