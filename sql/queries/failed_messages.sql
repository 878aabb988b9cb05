-- Messages that failed for good or are held for a person, in the order in which they did, for a test harness: whole, with what they
-- failed with and how often. Reads only; by the index workflows_dead.
select w.id, w."offset", w.timestamp, w.key, w.value, w.headers, w.error, w.reason, greatest(f.failures, 1)
  from eventflow.workflows w,
       lateral (select count(*) as failures, max(at) as at from eventflow.failures where workflow_id = w.id) f
 where w.application = %(application)b::text and w.status in ('failed', 'parked') and w.claim is not null
 order by f.at, w.id
