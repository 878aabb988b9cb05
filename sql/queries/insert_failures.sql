-- What an attempt of a message failed with: with the row's new state, or not at all. Appends.
insert into eventflow.failures (workflow_id, attempt, type, error)
select * from unnest(%(workflow_id)b::text[], %(attempt)b::int[], %(type)b::text[], %(error)b::text[])
