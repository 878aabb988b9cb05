-- A retry drops the checkpoint whose failure ended the workflow, and what was recorded after it.
-- By the primary key of checkpoints; a second run finds nothing.
delete from eventflow.checkpoints c
 using unnest(%(workflow_id)b::text[], %(seq)b::int[]) as t (workflow_id, seq)
 where c.workflow_id = t.workflow_id and c.seq >= t.seq
