-- Which of these hold their scope back still (R11). By primary key.
select id from eventflow.workflows where id = any(%(ids)b::text[]) and status in ('queued', 'running', 'waiting', 'parked')
