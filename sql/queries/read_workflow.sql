-- One workflow as people see it, with the version of who holds it or held it at its end. By primary keys.
select id, name, status::text, attempt, created_at, reason, executor, arguments, output, error,
       finished_at, parent, attributes, queue,
       (select e.version from eventflow.executors e where e.id = w.executor)
  from eventflow.workflows w where id = %(id)b::text
