-- Steps have ended: how far they were is of no use any more. In the flush of their checkpoints, by the primary key.
delete from eventflow.checkpoints c
 using unnest(%(workflow_id)b::text[], %(position)b::text[]) as t (workflow_id, position)
 where c.workflow_id = t.workflow_id and c.position = t.position
