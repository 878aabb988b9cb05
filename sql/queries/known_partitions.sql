-- Which partitions of a source a group has seen, and whether it read an earlier incarnation of the topic.
-- Reads by the unique keys of claims and sources.
select s.id, c.partition from eventflow.sources s join eventflow.claims c on c.source = s.id
 where s.topic = %(topic)b::text and c."group" = %(group)b::text and c.reprocessing is null
