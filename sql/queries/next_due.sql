-- When somebody is to look at a schedule that this executor serves, and the time now. Index schedules_due.
select extract(epoch from min(due_at))::float8, extract(epoch from clock_timestamp())::float8
  from eventflow.schedules
 where application = %(application)b::text and due_at is not null and workflow = any(%(workflows)b::text[])
   and (%(only)b::text[] is null or name = any(%(only)b::text[]))
