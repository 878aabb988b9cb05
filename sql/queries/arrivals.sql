-- What has come into lines since a snapshot: its `xmax`, and the transactions that were under way then, whose rows it did not show.
-- So nothing is read twice, and a line's head is found without walking over what was taken from it (a snapshot that somebody
-- holds keeps all that in the index). And which queues are paused, by the same snapshot: where one is not, all that was put in
-- line before it was resumed is shown. Index workflows_arrivals.
select s.snapshot, s.paused, a.queue, a.priority, a.queue_key, a.placed
  from (
    select pg_current_snapshot()::text as snapshot,
           array(select name from eventflow.queues
                  where application = %(application)b::text and name = any(%(queues)b::text[]) and paused) as paused
  ) s
  left join lateral (
    select w.queue, w.priority, w.queue_key, min(w.placed::text::bigint)::text as placed
      from (
        select queue, priority, queue_key, placed from eventflow.workflows
         where executor = 0 and placed is not null and application = %(application)b::text and queue = any(%(queues)b::text[])
           and placed >= %(since)b::text::xid8
        union all
        select queue, priority, queue_key, placed from eventflow.workflows
         where executor = 0 and placed is not null and application = %(application)b::text and queue = any(%(queues)b::text[])
           and placed = any(%(missed)b::text[]::xid8[]) and placed < %(since)b::text::xid8
      ) w group by 1, 2, 3
  ) a on true
 order by a.placed::bigint
