-- Rows for workflows that need one in any other state: accepted, in line of their scope, failed, parked, waiting for a retry.
-- Plain INSERT: a message's row that exists already is an incident (R5).
insert into eventflow.workflows
  (id, name, application, status, executor, claim, "offset", timestamp, scope, attempt, retries, recoveries, wake_at,
   arguments, key, value, headers, output, error, reason, deadline, attributes, parent, failed_seq, finished_at)
select id, name, %(application)b::text, status::eventflow.status,
       case when held then %(executor)b::bigint when held is null then 0 end, claim, o, timestamp, scope, attempt,
       retries, recoveries, now() + make_interval(secs => wake_in), arguments, key, value, headers, output, error, reason,
       to_timestamp(deadline), attributes::jsonb, parent, failed_seq,
       case when status in ('succeeded', 'failed', 'cancelled') then now() end
  from unnest(
    %(id)b::text[], %(name)b::text[], %(status)b::text[], %(held)b::bool[], %(claim)b::bigint[], %(offset)b::bigint[],
    %(timestamp)b::bigint[], %(scope)b::text[], %(attempt)b::int[], %(retries)b::int[], %(recoveries)b::int[],
    %(wake_in)b::float8[], %(arguments)b::text[], %(key)b::bytea[], %(value)b::bytea[], %(headers)b::text[],
    %(output)b::text[], %(error)b::text[], %(reason)b::text[], %(deadline)b::float8[], %(attributes)b::text[],
    %(parent)b::text[], %(failed_seq)b::int[]
  ) as t (id, name, status, held, claim, o, timestamp, scope, attempt, retries, recoveries, wake_in, arguments, key, value,
          headers, output, error, reason, deadline, attributes, parent, failed_seq)
