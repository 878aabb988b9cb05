-- Who may have drawn an id of the outbox and not ended yet: whoever inserts holds this lock from before it draws (R17). Reads catalogs.
select virtualtransaction from pg_locks
 where locktype = 'relation' and mode = 'RowExclusiveLock' and granted
   and database = (select oid from pg_database where datname = current_database())
   and relation = (select c.oid from pg_class c where c.relname = 'outbox' and c.relnamespace = (
         select k.relnamespace from pg_class k where k.oid = (select tableoid from eventflow.relay)))
