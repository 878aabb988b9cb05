-- What people have paused: all, or of this group. By the primary key.
select "group", nullif(topic, ''), nullif(partition, -1), who, why, at from eventflow.pauses
 where %(group)b::text is null or "group" = %(group)b::text order by "group", topic, partition
