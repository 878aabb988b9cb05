-- Events that Kafka refused, and those behind them, in order of id, from the one after a given one on, so many.
select id, at, topic, key, value, headers, behind, reason, parked_at, wanted from eventflow.undelivered
 where id > %(after)b::bigint order by id limit %(most)b::int
