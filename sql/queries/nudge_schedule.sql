-- Somebody is to look at a schedule now, where it is not paused; it is locked by this transaction.
update eventflow.schedules set due_at = least(due_at, now())
 where application = %(application)b::text and name = %(name)b::text and not paused
