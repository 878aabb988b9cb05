-- Start the workflows of fire times, each once: ids that only schedules give (R4), so where one is there it has been started. Here
-- where an executor is given, else by whoever has room.
insert into eventflow.workflows (id, name, application, status, executor, arguments, deadline)
select t.id, t.name, %(application)b::text, (case when t.executor is null then 'queued' else 'running' end)::eventflow.status,
       t.executor, t.arguments, now() + make_interval(secs => t.timeout)
  from unnest(%(id)b::text[], %(name)b::text[], %(executor)b::bigint[], %(arguments)b::text[], %(timeout)b::float8[])
    as t (id, name, executor, arguments, timeout)
 order by t.id
on conflict (id) do nothing
returning id, name, status::text, attempt, retries, recoveries, claim, "offset", timestamp, arguments, key, value, headers, parent,
          extract(epoch from deadline)::float8, generation, queue
