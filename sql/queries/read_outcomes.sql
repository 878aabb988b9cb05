-- How these workflows ended, if they have; 'gone' where there is none. By primary key.
select t.n, coalesce(w.status::text, 'gone'), w.output, w.error, w.reason
  from unnest(%(workflow_id)b::text[]) with ordinality as t (workflow_id, n)
  left join eventflow.workflows w on w.id = t.workflow_id
 where w.finished_at is not null or w.status = 'parked' or w.id is null
