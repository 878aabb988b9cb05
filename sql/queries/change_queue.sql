-- A person changes a queue, at once and until it is changed again: some of its settings, all of them back to what code says, or
-- whether it is paused.
update eventflow.queues
   set changed = case when %(reset)b::bool then '{}' else changed || %(changed)b::text::jsonb end,
       paused = coalesce(%(paused)b::bool, paused), changed_by = %(who)b::text, changed_at = now()
 where application = %(application)b::text and name = %(name)b::text
returning 1
