-- Publish: append to the outbox, in the order given; how many. Touches nothing that others hold. The last statement of its
-- transaction (R17), so that its ids are drawn shortly before its commit.
with added as (
  insert into eventflow.outbox (topic, key, value, headers)
  select topic, key, value, headers
    from unnest(%(topic)b::text[], %(key)b::bytea[], %(value)b::bytea[], %(headers)b::text[]) as t (topic, key, value, headers)
  returning 1
)
select count(*) from added
