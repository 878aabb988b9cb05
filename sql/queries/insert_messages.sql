-- Send: append to inboxes (R19). A message sent again under its key is the same one.
insert into eventflow.messages (workflow_id, topic, payload, key)
select * from unnest(%(workflow_id)b::text[], %(topic)b::text[], %(payload)b::text[], %(key)b::text[])
on conflict (workflow_id, key) where key is not null do nothing
