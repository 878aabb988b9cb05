-- What people ask of workflows that this executor holds. Indexes workflows_executor, requests_workflow.
select r.workflow_id, r.kind, r.who, r.id from eventflow.workflows w join eventflow.requests r on r.workflow_id = w.id
 where w.executor = %(executor)b::bigint and w.status in ('queued', 'running', 'waiting') and not r.settled order by r.id
