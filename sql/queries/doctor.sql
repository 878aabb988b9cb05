-- What can be wrong with a server for this work: its settings, its clock, how many connections are left, which transaction is the
-- oldest. Reads catalogs only, by any role; of others' sessions it sees what the role may see.
select current_setting('server_version'), pg_is_in_recovery(), extract(epoch from clock_timestamp())::float8,
       (select jsonb_object_agg(name, setting) from pg_settings
         where name in ('fsync', 'full_page_writes', 'autovacuum', 'track_counts', 'default_transaction_read_only',
                        'statement_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout',
                        'lock_timeout', 'max_connections', 'superuser_reserved_connections', 'reserved_connections'))::text,
       (select count(*) from pg_stat_activity where backend_type = 'client backend'),
       (select max(extract(epoch from clock_timestamp() - xact_start))::float8 from pg_stat_activity
         where xact_start is not null and pid <> pg_backend_pid() and backend_type = 'client backend'),
       has_function_privilege('pg_walfile_name(pg_lsn)', 'execute')
