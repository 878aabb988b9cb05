-- Events that cannot go out, or wait behind one that cannot, leave the outbox for people to see; how many. After the relay's fence.
-- A second run finds them gone.
with gone as (
  delete from eventflow.outbox where id = any(%(events)b::bigint[]) returning id, at, topic, key, value, headers
), added as (
  insert into eventflow.undelivered (id, at, topic, key, value, headers, behind, reason)
  select gone.*, t.behind, t.reason
    from gone join unnest(%(events)b::bigint[], %(behind)b::boolean[], %(reasons)b::text[]) as t (event, behind, reason)
      on t.event = gone.id
  returning 1
)
select count(*) from added
