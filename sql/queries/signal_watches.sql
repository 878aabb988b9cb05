-- Signal those who sleep until these events are set. Index watches_pkey.
insert into eventflow.signals (workflow_id)
select w.workflow_id from eventflow.watches w
  join unnest(%(target)b::text[], %(key)b::text[]) as t (target, key) on w.target = t.target and w.key = t.key
