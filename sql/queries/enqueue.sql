-- Put workflows in line, each once: where an id or deduplication id is taken nothing changes, and who has it is told (R4: others may
-- hold these, so never in the hot flush). The usual ones, up to the first that has a delay or another's id, are inserted together; the
-- rest, and those whose id was taken, are `place`'s one by one: so places, locks and ids go in the order given. Column `place` is the
-- statement's moment plus which of its rows it is: each row takes more than a microsecond, so a later one's is greater.
with begun as materialized (
  select eventflow.moment() as at, set_config('synchronous_commit', 'on', true) as durable
), sent as materialized (
  select t.*, begun.at + t.n as place,
         bool_and(coalesce(
           t.wait is null and t.until is null and t.deduplication_id is null and t.settle is null and t.settle_limit is null
           and t.name is not null and length(coalesce(t.key, '')) <= 500 and coalesce(t.timeout, 0) between 0 and 31557600000
           and (t.queue = 'default' or (t.application, t.queue) in (select application, name from eventflow.queues)),
           false)) over (order by t.n) as usual
    from begun cross join unnest(
      %(id)b::text[], %(name)b::text[], %(application)b::text[], %(queue)b::text[], %(arguments)b::text[], %(key)b::text[],
      %(priority)b::int[], %(wait)b::float8[], %(until)b::float8[], %(deduplication_id)b::text[], %(settle)b::float8[],
      %(settle_limit)b::float8[], %(timeout)b::float8[], %(deadline)b::float8[], %(attributes)b::text[], %(parent)b::text[]
    ) with ordinality as t (id, name, application, queue, arguments, key, priority, wait, until, deduplication_id, settle,
                            settle_limit, timeout, deadline, attributes, parent, n)
), added as (
  insert into eventflow.workflows as w
    (id, name, application, status, executor, arguments, queue, queue_key, priority, timeout, deadline, attributes, parent, placed, place)
  select id, name, application, 'queued', 0, arguments, queue, coalesce(key, ''), coalesce(priority, 0), timeout,
         to_timestamp(deadline), attributes::jsonb, parent, pg_current_xact_id(), place
    from sent where usual
  on conflict do nothing
  returning w.place, w.created_at
), others as materialized (
  select * from sent where not exists (select from added where added.place = sent.place)
   order by n -- whoever came later pushes back whoever came before: `place` is called in this order
)
select s.n, s.id, true as added, s.name, 'queued' as status, null as arguments, a.created_at
  from added a join sent s on s.place = a.place
union all
select t.n, p.id, p.added, p.name, p.status, p.arguments, p.created_at
  from others t cross join lateral eventflow.place(
    t.id, t.name, t.application, t.queue, t.arguments, t.key, t.priority, t.wait, to_timestamp(t.until), t.deduplication_id,
    t.settle, t.settle_limit, t.timeout, to_timestamp(t.deadline), t.attributes::jsonb, t.parent) as p
 order by n
