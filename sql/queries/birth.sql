-- A new executor: its identity, its beat, and row 0 of each of its lanes (R3). Raises where a name is taken (EF006).
-- Locks: an advisory lock per application, so that two births see each other's names.
select executor, timeline from eventflow.birth(
  %(application)b::text, %(names)b::jsonb, %(host)b::text, %(pid)b::int, %(lanes)b::int, %(version)b::text,
  %(queues)b::text[], %(schedules)b::text[]
)
