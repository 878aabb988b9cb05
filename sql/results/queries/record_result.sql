-- The last statement of a transaction: its ticket's row, with its result. Raises EF001 for one who was frozen for long, and is
-- refused by the primary key where the ticket is settled; waits where somebody is just about to settle it.
select eventflow_results.record(
  %(ticket)b::uuid, %(ledger)b::uuid, %(workflow_id)b::text, %(position)b::text, %(name)b::text, %(output)b::text,
  %(riders)b::text, %(attempts)b::int, %(seconds)b::float4, to_timestamp(%(heard)b::float8)
)
