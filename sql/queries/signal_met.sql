-- Signal those who sleep until what has already come: their watch and it were committed by transactions that did not see
-- each other. Each side looks again after its commit, at its own; and now and then one looks at all, for who died between.
-- Indexes watches_pkey, watches_workflow, events_pkey, signals_workflow. A second run finds the signal.
insert into eventflow.signals (workflow_id)
select distinct w.workflow_id
  from (
    select * from eventflow.watches where target = any(%(targets)b::text[])
    union select * from eventflow.watches where workflow_id = any(%(sleepers)b::text[])
    union select * from eventflow.watches where %(everyone)b::bool
  ) w
 where case when w.key = ''
            then not exists (select from eventflow.workflows t where t.id = w.target and t.finished_at is null)
            else exists (select from eventflow.events e where e.workflow_id = w.target and e.key = w.key) end
   and not exists (select from eventflow.signals s where s.workflow_id = w.workflow_id)
