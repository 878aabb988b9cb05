-- How many pages the pruner has to walk; none where there is no row. Asks the file system only.
select coalesce(pg_relation_size((select tableoid from eventflow.workflows limit 1)) / current_setting('block_size')::bigint, 0)
