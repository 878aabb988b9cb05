-- Of which trace a workflow is, beside the row that this transaction has written; an id that somebody had before keeps what it has.
-- A second run changes nothing.
insert into eventflow.traces (workflow_id, cause, span)
select t.workflow_id, t.cause, t.span
  from unnest(%(workflow_id)b::text[], %(cause)b::text[], %(span)b::text[]) as t (workflow_id, cause, span)
 where exists (select from eventflow.workflows w where w.id = t.workflow_id and w.created_at = now())
on conflict (workflow_id) do nothing
returning workflow_id
