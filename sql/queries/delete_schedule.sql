-- A schedule, and what waits in its line, are no more; what it has started goes on.
with fires as (
  delete from eventflow.fires where application = %(application)b::text and name = %(name)b::text
)
delete from eventflow.schedules where application = %(application)b::text and name = %(name)b::text
returning 1
