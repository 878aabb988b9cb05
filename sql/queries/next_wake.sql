-- When something of an application is next to go on that waits for a time, in seconds since 1970: a workflow, or a schedule's fire;
-- for a test harness. Reads only; scans the workflows.
select extract(epoch from least(
  (select min(wake_at) from eventflow.workflows
    where application = %(application)b::text and status in ('queued', 'waiting') and wake_at > now()),
  (select min(due_at) from eventflow.schedules where application = %(application)b::text and due_at > now())))::float8
