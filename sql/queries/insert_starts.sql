-- So many of each key begin now; what no rate looks back to any more goes.
with gone as (
  delete from eventflow.queue_starts where application = %(application)b::text and queue = %(queue)b::text
     and at < clock_timestamp() - make_interval(secs => %(longest)b::float8)
)
insert into eventflow.queue_starts (application, queue, key, at, n)
select %(application)b::text, %(queue)b::text, t.key, clock_timestamp(), t.n
  from unnest(%(key)b::text[], %(n)b::int[]) as t (key, n)
