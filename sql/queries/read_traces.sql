-- Of which traces these workflows are, those of which that is known. By the primary key, workflow by workflow, as read_checkpoints.
select c.*
  from unnest(%(ids)b::text[]) as asked (id) cross join lateral (
    select workflow_id, cause, span from eventflow.traces where workflow_id = asked.id offset 0
  ) c
