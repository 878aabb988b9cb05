-- Start a workflow under an id that others may hold: its own lane, lock_timeout, never in the hot flush (R4).
-- A second run, or another's row of this id, changes nothing.
insert into eventflow.workflows (id, name, application, status, executor, arguments, deadline, attributes, parent)
values (%(id)b::text, %(name)b::text, %(application)b::text, 'running', %(executor)b::bigint, %(arguments)b::text,
        to_timestamp(%(deadline)b::float8), %(attributes)b::text::jsonb, %(parent)b::text)
on conflict (id) do nothing
