-- Pause a group, one of its topics, or a partition of that; where that is known to the ledger, else no row is returned. One that is
-- paused already stays so, by whom and why it was said last. Locks that row.
insert into eventflow.pauses ("group", topic, partition, who, why)
select %(group)b::text, coalesce(%(topic)b::text, ''), coalesce(%(partition)b::int, -1), %(who)b::text, %(why)b::text
 where exists (
   select from eventflow.claims c join eventflow.sources s on s.id = c.source
    where c."group" = %(group)b::text and (%(topic)b::text is null or s.topic = %(topic)b::text)
      and (%(partition)b::int is null or c.partition = %(partition)b::int))
on conflict ("group", topic, partition) do update set who = excluded.who, why = excluded.why, at = now()
returning 1
