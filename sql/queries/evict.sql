-- End the sessions that this one waits for. Those that take a dead executor's rows over have ten seconds for it: two who do, and wait
-- for each other in turn, would else end each other for ever.
select pg_terminate_backend(a.pid)
  from unnest(pg_blocking_pids(%(pid)b::int)) as blocking (pid) join pg_stat_activity a on a.pid = blocking.pid
 where a.application_name <> 'eventflow recovery' or a.xact_start < now() - interval '10 s'
