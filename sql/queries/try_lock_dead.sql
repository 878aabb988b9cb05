-- The same without waiting: somebody else may be taking it over.
select 1 from eventflow.executors where id = %(dead)b::bigint and alive for update skip locked
