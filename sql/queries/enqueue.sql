-- Put workflows in line, each once: one whose id or deduplication id is taken changes nothing, and who has it is told (R4: where
-- others may hold these, never in the hot flush).
select t.n, p.id, p.added, p.name, p.status, p.arguments, p.created_at
  from unnest(
    %(id)b::text[], %(name)b::text[], %(application)b::text[], %(queue)b::text[], %(arguments)b::text[], %(key)b::text[],
    %(priority)b::int[], %(wait)b::float8[], %(until)b::float8[], %(deduplication_id)b::text[], %(settle)b::float8[],
    %(settle_limit)b::float8[], %(timeout)b::float8[], %(deadline)b::float8[], %(attributes)b::text[], %(parent)b::text[]
  ) with ordinality as t (id, name, application, queue, arguments, key, priority, wait, until, deduplication_id, settle,
                          settle_limit, timeout, deadline, attributes, parent, n)
 cross join lateral eventflow.place(
    t.id, t.name, t.application, t.queue, t.arguments, t.key, t.priority, t.wait, to_timestamp(t.until), t.deduplication_id,
    t.settle, t.settle_limit, t.timeout, to_timestamp(t.deadline), t.attributes::jsonb, t.parent) as p
 order by t.n
