-- Of schedules that this transaction has locked, in a later statement, so that all is seen that was done before: what they started
-- and has not ended, and what waits for that. By primary keys, id by id: without statistics the planner would read all else.
select s.name, run.ids, fill.ids, own.at, own.cause, coalesce(own.length, 0), filled.at, coalesce(filled.length, 0)
  from eventflow.schedules s
  cross join lateral (
    select coalesce(array_agg(w.id), '{}') as ids from unnest(s.running) r
     cross join lateral (select w.id, w.status from eventflow.workflows w where w.id = r limit 1) w
     where w.status in ('queued', 'running', 'waiting')) run
  cross join lateral (
    select coalesce(array_agg(w.id), '{}') as ids from unnest(s.filling) r
     cross join lateral (select w.id, w.status from eventflow.workflows w where w.id = r limit 1) w
     where w.status in ('queued', 'running', 'waiting')) fill
  left join lateral (
    select f.at, f.cause, count(*) over () as length from eventflow.fires f
     where f.application = s.application and f.name = s.name and f.cause <> 'backfill' order by f.at limit 1) own on true
  left join lateral (
    select f.at, count(*) over () as length from eventflow.fires f
     where f.application = s.application and f.name = s.name and f.cause = 'backfill' order by f.at limit 1) filled on true
 where s.application = %(application)b::text and s.name = any(%(name)b::text[])
