-- One workflow as people see it. By primary key.
select id, name, status::text, attempt, created_at, reason, executor, arguments, output, error,
       finished_at, parent, attributes, queue
  from eventflow.workflows where id = %(id)b::text
