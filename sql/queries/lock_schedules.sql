-- Schedules of these names, or all, for whoever changes them in this transaction. Locks them, in order of name.
select name, workflow, arguments, takes_fire, timeout, defined::text, made_by, next_at, fired_at, paused, now()
  from eventflow.schedules
 where application = %(application)b::text and (%(name)b::text[] is null or name = any(%(name)b::text[]))
 order by name for update
