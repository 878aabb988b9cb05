-- Executors that have been dead for a day, with their beats and flush numbers, where nothing refers to them any more.
-- Without its identity a late flush fails at the fence, so that its numbers may all go (R2, R3).
-- Locks only dead rows; a second run finds none. Index workflows_executor.
with gone as (
  delete from eventflow.executors e
   where not e.alive and e.died_at < now() - interval '1 day'
     and not exists (select from eventflow.claims c where c.owner = e.id)
     and not exists (select from eventflow.workflows w where w.executor = e.id and w.status in ('queued', 'running', 'waiting'))
     and not exists (select from eventflow.workflows w where w.executor = e.id and w.status = 'parked')
  returning id
), beats as (
  delete from eventflow.beats b using gone where b.executor = gone.id
), flushes as (
  delete from eventflow.flushes f using gone where f.executor = gone.id
)
select count(*) from gone
