-- One checkpoint, to settle a commit whose answer was lost (R3). By primary key.
select seq, output, error, attempts from eventflow.checkpoints
 where workflow_id = %(workflow_id)b::text and position = %(position)b::text
