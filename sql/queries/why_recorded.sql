-- The last thousand operations that a workflow has recorded. By the primary key of checkpoints.
select position, seq, name, output, error, finished_at from eventflow.checkpoints
 where workflow_id = %(id)b::text order by seq desc limit 1000
