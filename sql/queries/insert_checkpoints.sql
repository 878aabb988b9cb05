-- What steps came to. Plain INSERT: a position is recorded once.
-- Runs in the same transaction as, or after, the row of its workflow.
insert into eventflow.checkpoints (workflow_id, position, seq, name, output, error, attempts, seconds)
select * from unnest(
  %(workflow_id)b::text[], %(position)b::text[], %(seq)b::int[], %(name)b::text[], %(output)b::text[], %(error)b::text[],
  %(attempts)b::int[], %(seconds)b::float4[]
)
