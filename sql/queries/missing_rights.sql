-- What a running program may not do on the ledger's tables and functions, as right and name; no row: all is well.
-- Reads catalogs only; locks nothing.
select t.need, t.name from unnest(%(tables)b::text[], %(rights)b::text[]) as t (name, need)
  join pg_class c on c.relname = t.name and c.relnamespace = (select oid from pg_namespace where nspname = %(schema)b::text)
 where not has_table_privilege(c.oid, t.need)
union all
select distinct 'execute', p.proname::text from pg_proc p
 where p.pronamespace = (select oid from pg_namespace where nspname = %(schema)b::text)
   and not has_function_privilege(p.oid, 'execute')
