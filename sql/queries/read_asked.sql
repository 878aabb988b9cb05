-- What people ask of these workflows, in order; one row with nulls where they ask nothing. Index requests_workflow, workflow by
-- workflow.
select t.n, t.workflow_id, r.kind, r.who, r.id
  from unnest(%(workflow_id)b::text[]) with ordinality as t (workflow_id, n) left join lateral (
    select kind, who, id from eventflow.requests where workflow_id = t.workflow_id and not settled offset 0
  ) r on true
 order by r.id
