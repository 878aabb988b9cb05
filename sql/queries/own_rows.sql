-- Rows that carry this executor's id: those that it is not running were claimed by a commit whose answer was lost (R10b). In
-- order, as a scope's line is taken (R11).
-- Index workflows_executor.
select id, name, status::text, attempt, retries, recoveries, claim, "offset", timestamp, arguments, key, value, headers,
       parent, extract(epoch from deadline)::float8, generation, queue
  from eventflow.workflows where executor = %(executor)b::bigint and status in ('queued', 'running')
 order by claim, "offset"
