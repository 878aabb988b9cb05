-- A retry drops the checkpoint whose failure ended the workflow, its recorded attempts, and what was recorded after it; messages
-- whose receipt goes with them are in the inbox again. All that a run recorded (seq 0) goes with its messages.
-- By the primary key of checkpoints; a second run finds nothing.
with dropped as (
  delete from eventflow.checkpoints c
   using unnest(%(workflow_id)b::text[], %(seq)b::int[], %(position)b::text[]) as t (workflow_id, seq, position)
   where c.workflow_id = t.workflow_id
     and (c.seq >= t.seq or (split_part(c.position, '~', 1) = t.position and c.position <> t.position))
  returning c.workflow_id, c.position, t.seq
)
update eventflow.messages m set consumed = false, position = null
  from dropped d where d.seq > 0 and m.workflow_id = d.workflow_id and m.position = d.position
