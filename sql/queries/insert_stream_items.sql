-- Append to streams, in the order given. What a workflow's retry writes again, at its place and as it was, is the same item:
-- `source` tells both, under each of the payload codec's keys, with commas between; the first is kept.
-- Locks the workflows' rows first, in order of id: so ids rise in the order of commit, whichever lane writes.
with held as materialized (
  select id from eventflow.workflows where id = any(%(workflow_id)b::text[]) order by id for no key update
)
insert into eventflow.stream_items (workflow_id, key, value, source)
select workflow_id, key, value, split_part(source, ',', 1)
  from unnest(%(workflow_id)b::text[], %(key)b::text[], %(value)b::text[], %(source)b::text[])
       with ordinality as t (workflow_id, key, value, source, n)
 where (select count(*) from held) > 0
   and not exists (select from eventflow.stream_items s
                    where s.workflow_id = t.workflow_id and s.source = any(string_to_array(t.source, ',')))
 order by n
on conflict (workflow_id, source) where source is not null do nothing
