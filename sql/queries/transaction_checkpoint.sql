-- The checkpoint of a transaction step, in the user's own transaction, after guard: effect, record and fence in one commit.
insert into eventflow.checkpoints (workflow_id, position, seq, name, output, attempts, seconds)
values (%(workflow_id)b::text, %(position)b::text, %(seq)b::int, %(name)b::text, %(output)b::text, %(attempts)b::int,
        %(seconds)b::float4)
