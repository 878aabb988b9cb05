-- Note which dead letters are to be redelivered one after another, at a rate; its number. Appends. A second run notes them a second
-- time: whoever has gone by then is passed over.
select eventflow.redeliver_all(
  %(who)b::text, %(rate)b::float8, %(application)b::text, %(consumer)b::text, %(group)b::text, %(topic)b::text,
  %(partition)b::int, %(key)b::bytea, %(error_type)b::text, %(status)b::text, %(failed_after)b::timestamptz,
  %(failed_before)b::timestamptz)
