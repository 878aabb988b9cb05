-- Schedules that are due for long, and that no living process fires: a warning, and nothing is lost but time.
select s.name, s.workflow from eventflow.schedules s
 where s.application = %(application)b::text and s.due_at < now() - interval '1 minute'
   and not exists (select from eventflow.executors e where e.alive and e.application = s.application and e.names ? s.workflow
                      and (e.schedules is null or s.name = any(e.schedules)))
 order by s.name
