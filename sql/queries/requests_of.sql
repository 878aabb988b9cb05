-- What people ask of these workflows, which this executor has just taken. Index requests_workflow, workflow by workflow.
select r.*
  from unnest(%(ids)b::text[]) as asked (id) cross join lateral (
    select workflow_id, kind, who, id from eventflow.requests where workflow_id = asked.id and not settled offset 0
  ) r
 order by r.id
