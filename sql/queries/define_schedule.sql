-- What code, or a person, says of a schedule. Its pause, and what it has counted, stay.
insert into eventflow.schedules as s
  (application, name, workflow, arguments, takes_fire, timeout, defined, made_by, next_at, due_at, changed_by, changed_at)
values (%(application)b::text, %(name)b::text, %(workflow)b::text, %(arguments)b::text, %(takes_fire)b::bool, %(timeout)b::float8,
        %(defined)b::text::jsonb, %(made_by)b::text, %(next_at)b::text::timestamptz, %(due_at)b::text::timestamptz,
        %(made_by)b::text, now())
on conflict (application, name) do update
  set workflow = excluded.workflow, arguments = excluded.arguments, takes_fire = excluded.takes_fire, timeout = excluded.timeout,
      defined = excluded.defined, made_by = excluded.made_by, next_at = excluded.next_at,
      due_at = case when s.paused then null
                    when exists (select from eventflow.fires f where f.application = s.application and f.name = s.name) then now()
                    else excluded.due_at end
