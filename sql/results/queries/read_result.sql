-- What a settled ticket came to: no output, it is void. In a statement after that which settled it. By primary key.
select output, riders, attempts, seconds from eventflow_results.results
 where ticket = %(ticket)b::uuid and workflow_id = %(workflow_id)b::text
