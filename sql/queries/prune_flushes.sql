-- Old flush numbers: a lane's in one statement, from the lowest on without gaps, never the newest (R3).
-- Locks what it deletes; a flush that looks for its predecessor holds that one FOR KEY SHARE, and it is the newest.
-- A second run finds what was flushed since. By the primary key.
with gone as (
  delete from eventflow.flushes f
   using (select executor, lane, max(n) as newest from eventflow.flushes group by executor, lane) as l
   where f.executor = l.executor and f.lane = l.lane and f.n < l.newest
  returning 1
)
select count(*) from gone
