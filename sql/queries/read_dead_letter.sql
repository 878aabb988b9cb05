-- One message's workflow, whatever it has come to, with the message itself and what it failed with. By primary keys.
select w.id, w.name, c."group", s.topic, s.incarnation, c.partition, w."offset", w.timestamp, w.status::text, w.attempt,
       (select count(*) from eventflow.failures f where f.workflow_id = w.id), w.created_at,
       (select min(f.at) from eventflow.failures f where f.workflow_id = w.id),
       (select max(f.at) from eventflow.failures f where f.workflow_id = w.id),
       w.error, w.reason, w.key, w.value, w.headers
  from eventflow.workflows w join eventflow.claims c on c.id = w.claim join eventflow.sources s on s.id = c.source
 where w.id = %(id)b::text
