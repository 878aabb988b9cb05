-- Delete rows that nobody can ask for any more. By primary key; a second run finds none.
delete from eventflow_results.results r
 using unnest(%(ticket)b::uuid[], %(workflow_id)b::text[]) as gone (ticket, workflow_id)
 where r.ticket = gone.ticket and r.workflow_id = gone.workflow_id
