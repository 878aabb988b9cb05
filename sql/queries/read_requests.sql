-- What people have done to a workflow, or asked for, in order. Index requests_workflow.
select at, kind, who from eventflow.requests where workflow_id = %(id)b::text order by id
