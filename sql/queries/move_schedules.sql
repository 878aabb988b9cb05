-- Where schedules stand from now on; each is locked by this transaction.
update eventflow.schedules s
   set next_at = t.next_at::timestamptz, due_at = t.due_at::timestamptz, fired_at = t.fired_at::timestamptz,
       running = array(select jsonb_array_elements_text(t.running::jsonb)),
       filling = array(select jsonb_array_elements_text(t.filling::jsonb)),
       skipped = s.skipped + t.skipped, missed = s.missed + t.missed
  from unnest(%(name)b::text[], %(next_at)b::text[], %(due_at)b::text[], %(fired_at)b::text[], %(running)b::text[],
              %(filling)b::text[], %(skipped)b::bigint[], %(missed)b::bigint[])
    as t (name, next_at, due_at, fired_at, running, filling, skipped, missed)
 where s.application = %(application)b::text and s.name = t.name
