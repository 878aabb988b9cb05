-- See the function.
select eventflow.delay(%(ids)b::text[], %(who)b::text, %(wait)b::float8, to_timestamp(%(until)b::float8))
