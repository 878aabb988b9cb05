-- Append to streams, in the order given. What a workflow's retry writes again, at its place and as it was, is the same item.
-- Locks the workflows' rows first, in order of id: so ids rise in the order of commit, whichever lane writes.
with held as materialized (
  select id from eventflow.workflows where id = any(%(workflow_id)b::text[]) order by id for no key update
)
insert into eventflow.stream_items (workflow_id, key, value, source)
select workflow_id, key, value, source
  from unnest(%(workflow_id)b::text[], %(key)b::text[], %(value)b::text[], %(source)b::text[])
       with ordinality as t (workflow_id, key, value, source, n)
 where (select count(*) from held) > 0 order by n
on conflict (workflow_id, source) where source is not null do nothing
