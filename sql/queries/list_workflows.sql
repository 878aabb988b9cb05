-- A page of workflows as people list them, oldest or newest first, after the one that the last page ended with. Reads the whole
-- table where no parent is given: an index by time would be paid by every insert (ADR 2).
select id, name, status::text, attempt, created_at, reason, finished_at, parent, attributes, queue,
       (select e.version from eventflow.executors e where e.id = w.executor)
  from eventflow.workflows w
 where (%(status)b::text is null or status = %(status)b::text::eventflow.status)
   and (%(name)b::text is null or name = %(name)b::text)
   and (%(queue)b::text is null or queue = %(queue)b::text)
   and (%(prefix)b::text is null or starts_with(id, %(prefix)b::text))
   and (%(attributes)b::text is null or attributes @> %(attributes)b::text::jsonb)
   and (%(parent)b::text is null or parent = %(parent)b::text)
   and (%(created_after)b::timestamptz is null or created_at > %(created_after)b::timestamptz)
   and (%(created_before)b::timestamptz is null or created_at < %(created_before)b::timestamptz)
   and (%(after_id)b::text is null
        or case when %(newest)b::boolean then (created_at, id) < (%(after_time)b::timestamptz, %(after_id)b::text collate "C")
                else (created_at, id) > (%(after_time)b::timestamptz, %(after_id)b::text collate "C") end)
 order by case when %(newest)b::boolean then created_at end desc, case when %(newest)b::boolean then id end desc, created_at, id
 limit 500
