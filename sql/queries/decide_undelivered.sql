-- What a person wants of events that Kafka refused: of these, or of all; how many. The relay does it. A second run says the same again.
with decided as (
  update eventflow.undelivered set wanted = %(wanted)b::text
   where not behind and (%(events)b::bigint[] is null or id = any(%(events)b::bigint[]))
  returning 1
)
select count(*) from decided
