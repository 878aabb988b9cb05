-- The oldest messages of these inboxes that nobody has received. Index messages_inbox.
select t.n, m.id, m.payload
  from unnest(%(workflow_id)b::text[], %(topic)b::text[]) with ordinality as t (workflow_id, topic, n)
  cross join lateral (
    select id, payload from eventflow.messages
     where workflow_id = t.workflow_id and topic = t.topic and not consumed order by id limit 20
  ) as m order by t.n, m.id
