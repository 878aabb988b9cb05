-- The values of these events, if they are set. By primary key.
select t.n, e.value
  from unnest(%(workflow_id)b::text[], %(key)b::text[]) with ordinality as t (workflow_id, key, n)
  join eventflow.events e on e.workflow_id = t.workflow_id and e.key = t.key
