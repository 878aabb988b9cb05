-- What can be said of a schema by a role without any right on it. Reads catalogs only; locks nothing.
select current_setting('server_version_num')::int, current_user::text, current_database()::text,
       n.oid is not null, coalesce(has_schema_privilege(n.oid, 'usage'), false),
       case when n.oid is null then has_database_privilege(current_database(), 'create')
            else has_schema_privilege(n.oid, 'create') end,
       c.oid is not null, coalesce(has_table_privilege(c.oid, 'select'), false)
  from (select %(schema)b::text as name) as s
  left join pg_namespace n on n.nspname = s.name
  left join pg_class c on c.relnamespace = n.oid and c.relname = 'migrations' and c.relkind = 'r'
