-- How these workflows ended, if they have. By primary key.
select t.n, w.status::text, w.output, w.error, w.reason
  from unnest(%(workflow_id)b::text[]) with ordinality as t (workflow_id, n)
  join eventflow.workflows w on w.id = t.workflow_id
 where w.finished_at is not null or w.status = 'parked'
