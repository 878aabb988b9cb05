-- What these workflows have recorded; replayed on their next run. By the primary key of checkpoints.
select workflow_id, position, seq, name, output, error, attempts, seconds
  from eventflow.checkpoints where workflow_id = any(%(ids)b::text[])
