-- The next items of these streams, and whether nothing will follow them; nothing at all where there is no such workflow.
-- By primary key, from the last item read on; the first time so many are skipped.
select t.n, w.finished_at is not null
         or coalesce((select s.value is null from eventflow.stream_items s
                       where s.workflow_id = t.workflow_id and s.key = t.key order by s.id desc limit 1), false),
       i.id, i.value
  from unnest(%(workflow_id)b::text[], %(key)b::text[], %(after)b::text[], %(skip)b::text[])
       with ordinality as t (workflow_id, key, after, skip, n)
  join eventflow.workflows w on w.id = t.workflow_id
  left join lateral (
    select s.id, s.value from eventflow.stream_items s
     where s.workflow_id = t.workflow_id and s.key = t.key and s.id > t.after::bigint and s.value is not null
     order by s.id offset t.skip::bigint limit 200
  ) as i on true
 order by t.n, i.id
