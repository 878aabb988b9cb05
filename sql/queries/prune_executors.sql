-- Executors that have been dead for a day, with their beats and flush numbers, where nothing refers to them any more.
-- Locks only dead rows; a second run finds none.
with gone as (
  delete from eventflow.executors e
   where not e.alive and e.died_at < now() - interval '1 day'
     and not exists (select from eventflow.claims c where c.owner = e.id)
     and not exists (select from eventflow.workflows w where w.executor = e.id and w.status in ('queued', 'running', 'waiting'))
  returning id
), beats as (
  delete from eventflow.beats b using gone where b.executor = gone.id
)
delete from eventflow.flushes f using gone where f.executor = gone.id
