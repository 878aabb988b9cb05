-- What each attempt of a message failed with, in order. By the index failures_workflow.
select attempt, at, error from eventflow.failures where workflow_id = %(id)b::text order by id
