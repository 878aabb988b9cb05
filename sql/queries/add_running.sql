-- What comes due while this workflow of the schedule runs overlaps with it; the schedule is locked by this transaction.
update eventflow.schedules set running = running || %(id)b::text
 where application = %(application)b::text and name = %(name)b::text
