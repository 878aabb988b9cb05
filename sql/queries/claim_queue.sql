-- Take the heads of a queue's lines, so many of each at most: by priority, then turn about. They run from then on. A line is looked
-- at from where it was last left, for all before has been taken. Locks what it takes, skipping what a peer takes.
-- Index workflows_line.
with asked as materialized (
  select * from unnest(%(priority)b::int[], %(key)b::text[], %(low)b::text[], %(share)b::int[])
         with ordinality as t (priority, queue_key, low, share, n)
), heads as materialized (
  select asked.n, asked.priority, h.id, h.placed, h.place
    from asked cross join lateral (
      select w.id, w.placed, w.place from eventflow.workflows w
       where w.executor = 0 and w.placed is not null and w.status = 'queued' and w.application = %(application)b::text and w.queue = %(queue)b::text
         and w.priority = asked.priority and w.queue_key = asked.queue_key and w.placed >= asked.low::xid8
         and w.name = any(%(names)b::text[])
       order by w.placed, w.place limit asked.share for update skip locked
    ) h
), turns as (
  select *, row_number() over (partition by n order by placed, place) as turn from heads
), taken as materialized (
  select id, n, row_number() over (order by priority, turn, n) as at from turns order by at limit %(limit)b::int
)
update eventflow.workflows w
   set executor = %(executor)b::bigint, status = 'running', taken = pg_current_xact_id(),
       deadline = least(w.deadline, now() + make_interval(secs => coalesce(w.timeout, (%(timeouts)b::text::jsonb ->> w.name)::float8)))
  from taken where w.id = taken.id
returning w.id, w.name, w.status::text, w.attempt, w.retries, w.recoveries, w.claim, w."offset", w.timestamp,
          w.arguments, w.key, w.value, w.headers, w.parent, extract(epoch from w.deadline)::float8, w.generation, w.queue,
          taken.n::int, taken.at::int, w.placed::text, w.queue_key
