-- How many workflows of an application have not ended, by status, and how many dead letters there are, by handler.
-- Reads all of these by the partial indexes of what is unfinished, and of dead letters.
select 'status', w.status::text, count(*) from eventflow.workflows w
 where w.status in ('queued', 'running', 'waiting', 'parked') and w.application = %(application)b::text group by 2
union all
select 'dead letters', w.name, count(*) from eventflow.workflows w
 where w.claim is not null and w.status in ('failed', 'parked') and w.application = %(application)b::text group by 2
 order by 1, 2
