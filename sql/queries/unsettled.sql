-- How much of an application may go on now, for a test harness that waits until nothing does: rows that nobody holds, or that stand in
-- their scope's line, and are not behind it, sleepers whose time has come or for whom something came, what is due in a queue or by a
-- schedule. Reads only; scans the table.
select (select count(*) from eventflow.workflows w
         where w.application = %(application)b::text and (w.wake_at is null or w.wake_at <= now())
           and ((w.executor is null or w.executor = 0 and w.queue is null) and w.status in ('queued', 'running')
                and (w.scope is null or not exists (
                  select from eventflow.workflows p where p.scope = w.scope and p."offset" < w."offset"
                     and p.status in ('queued', 'running', 'waiting', 'parked')))
             or w.executor = 0 and w.queue is not null and w.status = 'queued' and w.placed is null
             or w.executor is null and w.status = 'waiting' and w.wake_at is not null))
     + (select count(*) from eventflow.signals s join eventflow.workflows w on w.id = s.workflow_id
         where w.status = 'waiting' and w.executor is null and w.application = %(application)b::text)
     + (select count(*) from eventflow.schedules where application = %(application)b::text and due_at <= now())
