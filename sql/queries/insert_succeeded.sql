-- The hot path: messages whose workflow finished before it needed a row. One insert each, in the final state, with what its
-- steps came to inside (write-once, ADR 3).
-- A conflict on the primary key is an incident, never ignored (R5).
insert into eventflow.workflows
  (id, name, application, status, executor, claim, "offset", timestamp, scope, key, value, headers, output, steps,
   finished_at)
select id, %(name)b::text, %(application)b::text, 'succeeded', %(executor)b::bigint, claim, o, timestamp, scope, key, value, headers,
       output, steps, now()
  from unnest(
    %(id)b::text[], %(claim)b::bigint[], %(offset)b::bigint[], %(timestamp)b::bigint[],
    %(scope)b::text[], %(key)b::bytea[], %(value)b::bytea[], %(headers)b::text[], %(output)b::text[],
    %(steps)b::text[]
  ) as t (id, claim, o, timestamp, scope, key, value, headers, output, steps)
