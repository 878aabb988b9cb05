-- The identity row of a presumed dead executor, FOR UPDATE: UPDATE alone would not exclude its flushes' KEY SHARE (R9).
select 1 from eventflow.executors where id = %(dead)b::bigint and alive for update
