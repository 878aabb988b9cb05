-- The events of the highest batch, in order, where they are still there.
with ranges as materialized (
  select lower(r) as low, upper(r) as high
    from (select ids from eventflow.outbox_batches order by n desc limit 1) b cross join lateral unnest(b.ids) r
)
select o.id, o.topic, o.key, o.value, o.headers from ranges r join eventflow.outbox o on o.id >= r.low and o.id < r.high
union all
select u.id, u.topic, u.key, u.value, u.headers from ranges r join eventflow.undelivered u on u.id >= r.low and u.id < r.high
 order by id
