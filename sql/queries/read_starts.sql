-- How many of a queue have begun within a time, by key, and seconds until the first of them no longer counts. Index queue_starts_at.
select key, sum(n)::bigint,
       extract(epoch from min(at) + make_interval(secs => %(period)b::float8) - clock_timestamp())::float8
  from eventflow.queue_starts
 where application = %(application)b::text and queue = %(queue)b::text
   and at > clock_timestamp() - make_interval(secs => %(period)b::float8)
 group by key
