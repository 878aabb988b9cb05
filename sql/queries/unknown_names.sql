-- What nobody holds although it could go on, under names that no living executor has registered, for a warning.
-- Indexes workflows_executor, executors_alive.
select w.name, count(*) from eventflow.workflows w
 where w.executor is null and w.status in ('queued', 'running', 'waiting') and w.application = %(application)b::text
   and (w.status <> 'waiting' or w.wake_at <= now())
   and not exists (select from eventflow.executors e where e.alive and e.application = w.application and e.names ? w.name)
 group by 1
