-- A workflow's checkpoints in the order in which they were recorded. By the primary key of checkpoints.
select position, name, attempts, finished_at - make_interval(secs => seconds), finished_at, error
  from eventflow.checkpoints where workflow_id = %(id)b::text order by seq
