-- migration: 10 traces
-- oldest_code: 9
-- Of which trace a workflow is: code before this runs on, and knows nothing of it.

-- Of which trace a workflow is, where that is recorded: whoever runs it next goes on with it.
create table eventflow.traces (
  workflow_id text collate "C" primary key,
  cause       text,                       -- the span that it was started by, a W3C traceparent; null: its message's headers tell
  span        text                        -- that of the run that wrote its row
);

-- Forget workflows that have ended or are parked, and all that is theirs; who did it stays. Who sleeps until they end is woken.
create or replace function eventflow.forget(ids text[], by_whom text) returns bigint language plpgsql volatile as $$
declare held text[] := eventflow.hold_for(ids, 'delete', by_whom, '{succeeded,failed,cancelled,parked}');
begin
  delete from eventflow.checkpoints c where c.workflow_id = any(held);
  delete from eventflow.messages m where m.workflow_id = any(held);
  delete from eventflow.events e where e.workflow_id = any(held);
  delete from eventflow.stream_items i where i.workflow_id = any(held);
  delete from eventflow.watches v where v.workflow_id = any(held);
  delete from eventflow.signals s where s.workflow_id = any(held);
  delete from eventflow.failures f where f.workflow_id = any(held);
  delete from eventflow.edits e where e.workflow_id = any(held);
  delete from eventflow.traces t where t.workflow_id = any(held);
  insert into eventflow.signals (workflow_id) select distinct v.workflow_id from eventflow.watches v where v.target = any(held);
  delete from eventflow.workflows w where w.id = any(held);
  return cardinality(held);
end $$;
