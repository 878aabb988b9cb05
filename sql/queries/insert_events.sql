-- Set events; the last value counts, of several in one flush, too. By primary key.
insert into eventflow.events (workflow_id, key, value)
select distinct on (workflow_id, key) workflow_id, key, value
  from unnest(%(workflow_id)b::text[], %(key)b::text[], %(value)b::text[]) with ordinality as t (workflow_id, key, value, n)
 order by workflow_id, key, n desc
on conflict (workflow_id, key) do update set value = excluded.value, set_at = now()
