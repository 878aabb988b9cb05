-- Schedules that this process cannot read are looked at again in a minute, by whoever can; they are locked by this transaction.
update eventflow.schedules set due_at = now() + interval '1 minute'
 where application = %(application)b::text and name = any(%(name)b::text[])
