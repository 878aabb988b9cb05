-- Let what is paused go on: a group with all of its topics, a topic with all of its partitions, or a partition. Returns what was paused.
-- A second run finds nothing. By the primary key.
delete from eventflow.pauses p
 where p."group" = %(group)b::text and (%(topic)b::text is null or p.topic = %(topic)b::text)
   and (%(partition)b::int is null or p.partition = %(partition)b::int)
returning p.topic, p.partition
