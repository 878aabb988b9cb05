-- What is to be published next: lowest ids first, because they are there, and whatever was taken before (R17). `low` only saves
-- reading over dead rows. So many rows, and as many as are taken before the bytes are enough. After `settle_batch`; locks nothing.
select id, topic, key, value, headers from (
  select o.*, sum(coalesce(octet_length(o.value), 0)) over (order by o.id) - coalesce(octet_length(o.value), 0) as before
    from (select * from eventflow.outbox where id > %(low)b::bigint order by id limit %(most)b::int) o
) t
 where before < %(bytes)b::bigint order by id
