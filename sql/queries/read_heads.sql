-- Which of these lines hold something still, and from which transaction on: their heads were locked by somebody else.
-- Index workflows_line.
select t.queue, t.priority, t.queue_key, h.placed::text
  from unnest(%(queue)b::text[], %(priority)b::int[], %(key)b::text[], %(low)b::text[]) as t (queue, priority, queue_key, low)
 cross join lateral (
   select w.placed from eventflow.workflows w
    where w.executor = 0 and w.placed is not null and w.status = 'queued' and w.application = %(application)b::text
      and w.queue = t.queue and w.priority = t.priority and w.queue_key = t.queue_key and w.placed >= t.low::xid8
      and w.name = any(%(names)b::text[])
    order by w.placed, w.place limit 1
 ) h
