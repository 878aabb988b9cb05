-- What these workflows have recorded; replayed on their next run. By the primary key of checkpoints, workflow by workflow: until
-- the table has statistics, the planner takes a list of a hundred ids for half of it, and reads it from end to end.
select c.*
  from unnest(%(ids)b::text[]) as asked (id) cross join lateral (
    select workflow_id, position, seq, name, output, error, attempts, seconds
      from eventflow.checkpoints where workflow_id = asked.id offset 0
  ) c
