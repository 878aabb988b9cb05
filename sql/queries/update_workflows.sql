-- New states of rows that this executor holds; a released row loses its holder (R8a). Raises EF004 if one is not ours, or final.
-- Locks the rows in order of id before it writes the first; others never lock rows of a living executor. Rows are found by key
-- alone, and whose they are is counted after: from stale statistics "the one row of executor 7" makes a nested loop of the lists.
-- By `any`, for which the planner takes the index: joined, it reads a table of some thousand rows from end to end, twice.
with sent as materialized (
  select * from unnest(
    %(id)b::text[], %(status)b::text[], %(held)b::bool[], %(attempt)b::int[], %(retries)b::int[],
    %(recoveries)b::int[], %(wake_in)b::float8[], %(output)b::text[], %(error)b::text[], %(reason)b::text[], %(arguments)b::text[],
    %(failed_seq)b::int[], %(generation)b::int[]
  ) as t (id, status, held, attempt, retries, recoveries, wake_in, output, error, reason, arguments, failed_seq, generation)
), held as materialized (
  select w.id, w.executor, w.finished_at from eventflow.workflows w where w.id = any(array(select id from sent)) order by w.id for update
), ours as (
  select count(*) filter (where executor = %(executor)b::bigint and finished_at is null) as n from held
), written as (
  update eventflow.workflows w
     set status = sent.status::eventflow.status, attempt = sent.attempt, retries = sent.retries,
         executor = case when sent.held then w.executor end,
         recoveries = sent.recoveries, wake_at = now() + make_interval(secs => sent.wake_in),
         arguments = coalesce(sent.arguments, w.arguments), output = sent.output, error = sent.error, reason = sent.reason,
         failed_seq = sent.failed_seq, generation = coalesce(sent.generation, w.generation),
         finished_at = case when sent.status in ('succeeded', 'failed', 'cancelled') then now() end
    from sent
   where w.id = sent.id and w.id = any(array(select id from sent)) and (select n from ours) = (select count(*) from sent)
  returning 1
)
select eventflow.expect((select count(*) from written), (select count(*) from sent))
