-- A small batch of succeeded workflows past their time, with their checkpoints. Failed ones stay for people.
-- Index workflows_finished; skips rows that something else holds; a second run takes the next batch.
with old as (
  select id from eventflow.workflows
   where finished_at < now() - %(keep)b::interval and status = 'succeeded'
   limit %(batch)b::int for update skip locked
), checkpoints as (
  delete from eventflow.checkpoints c using old where c.workflow_id = old.id
)
delete from eventflow.workflows w using old where w.id = old.id returning w.id
