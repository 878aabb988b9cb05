-- Schedules that are due, the longest first, for whoever fires them in this transaction. Locks them, skipping those that a peer
-- fires; once it has, they are due later. Index schedules_due.
select name, workflow, arguments, takes_fire, timeout, defined::text, made_by, next_at, fired_at, paused, now()
  from eventflow.schedules
 where application = %(application)b::text and due_at <= now() and workflow = any(%(workflows)b::text[])
   and (%(only)b::text[] is null or name = any(%(only)b::text[]))
 order by due_at limit 250 for update skip locked
