-- Of schedules that this transaction has locked, in a later statement, so that all is seen that was done before: what they started
-- and has not ended, and what waits for that. By primary keys.
select s.name, array(select w.id from eventflow.workflows w where w.id = any(s.running) and w.status in ('queued', 'running', 'waiting')),
       array(select w.id from eventflow.workflows w where w.id = any(s.filling) and w.status in ('queued', 'running', 'waiting')),
       own.at, own.cause, coalesce(own.length, 0), fill.at, coalesce(fill.length, 0)
  from eventflow.schedules s
  left join lateral (select f.at, f.cause, count(*) over () as length from eventflow.fires f
                      where f.application = s.application and f.name = s.name and f.cause <> 'backfill'
                      order by f.at limit 1) own on true
  left join lateral (select f.at, count(*) over () as length from eventflow.fires f
                      where f.application = s.application and f.name = s.name and f.cause = 'backfill'
                      order by f.at limit 1) fill on true
 where s.application = %(application)b::text and s.name = any(%(name)b::text[])
