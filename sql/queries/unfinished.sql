-- What of an application has not ended and is not held for a person, for a test harness's complaint. Reads only; scans the table.
select id, status::text from eventflow.workflows
 where application = %(application)b::text and status in ('queued', 'running', 'waiting') order by created_at, id limit 10
