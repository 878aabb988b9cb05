-- Which of these fire times have a workflow already. By primary key.
select id from eventflow.workflows where id = any(%(ids)b::text[])
