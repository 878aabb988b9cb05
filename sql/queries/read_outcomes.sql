-- Which of these messages a commit whose answer was lost has recorded (R3). By primary key.
select id, status::text from eventflow.workflows where id = any(%(ids)b::text[])
