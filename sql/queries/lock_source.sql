-- A claim stands on a source that is current; a newer incarnation waits for it (R7, R16).
select 1 from eventflow.sources where id = %(source)b::bigint and not superseded for share
