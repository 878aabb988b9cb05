-- The processes of an application that live, or that nobody has taken over yet: since when, how long silent, what they hold.
-- Indexes executors_alive, workflows_executor.
select e.id, e.host, e.pid, e.version, e.born_at, extract(epoch from now() - b.at)::float8,
       (select count(*) from eventflow.workflows w where w.executor = e.id and w.status in ('queued', 'running', 'waiting')),
       (select count(*) from eventflow.claims c where c.owner = e.id and not c.released and not c.ended)
  from eventflow.executors e left join eventflow.beats b on b.executor = e.id
 where e.alive and e.application = %(application)b::text order by e.id
