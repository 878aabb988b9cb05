-- What a workflow waits for while it sleeps. By primary key; a second run changes nothing.
insert into eventflow.watches (target, key, workflow_id)
select * from unnest(%(target)b::text[], %(key)b::text[], %(workflow_id)b::text[])
on conflict do nothing
