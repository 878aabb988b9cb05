-- A person lets a schedule rest, and says why, or lets it go on, from a time. It is locked by this transaction.
update eventflow.schedules
   set paused = %(paused)b::bool, note = %(note)b::text, next_at = coalesce(%(next_at)b::text::timestamptz, next_at),
       due_at = %(due_at)b::text::timestamptz, changed_by = %(who)b::text, changed_at = now()
 where application = %(application)b::text and name = %(name)b::text
