-- Settle a ticket: it is void from now on, unless it has a row. Waits for a transaction that is about to commit it, or not.
-- A second run finds the row.
insert into eventflow_results.results (ticket, ledger, seconds, attempts, workflow_id, position, name)
values (%(ticket)b::uuid, %(ledger)b::uuid, 0, 0, %(workflow_id)b::text, %(position)b::text, %(name)b::text)
on conflict (ticket, workflow_id) do nothing
