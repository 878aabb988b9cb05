-- Set events; the last value counts. By primary key.
insert into eventflow.events (workflow_id, key, value)
select * from unnest(%(workflow_id)b::text[], %(key)b::text[], %(value)b::text[])
on conflict (workflow_id, key) do update set value = excluded.value, set_at = now()
