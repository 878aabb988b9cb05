-- A page of this ledger's rows that have been here for so long, in the order of their tickets, which is about that of time: none
-- that was issued too late to be old. By primary key.
select ticket, workflow_id, position from eventflow_results.results
 where (ticket, workflow_id) > (%(after)b::uuid, %(after_id)b::text) and ticket < %(before)b::uuid
   and ledger = %(ledger)b::uuid and finished_at < now() - %(keep)b::interval
 order by ticket, workflow_id limit %(batch)b::int
