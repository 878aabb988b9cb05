-- After mark_dead, in a statement of its own: its unfinished workflows belong to whoever serves them (R9). Index workflows_executor.
update eventflow.workflows set executor = null
 where executor = %(dead)b::bigint and status in ('queued', 'running', 'waiting')
