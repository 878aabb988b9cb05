-- Schedules as people see them: those of these names, or all.
select s.name, s.workflow, s.defined::text, s.made_by, s.paused, s.note, s.changed_by, s.changed_at,
       case when not s.paused then s.next_at end, s.fired_at,
       array(select w.id from eventflow.workflows w
              where w.id = any(s.running || s.filling) and w.status in ('queued', 'running', 'waiting') order by w.id),
       (select count(*) from eventflow.fires f where f.application = s.application and f.name = s.name), s.skipped, s.missed,
       exists (select from eventflow.executors e where e.alive and e.application = s.application and e.names ? s.workflow
                  and (e.schedules is null or s.name = any(e.schedules)))
  from eventflow.schedules s
 where s.application = %(application)b::text and (%(name)b::text[] is null or s.name = any(%(name)b::text[]))
 order by s.name
