-- Where the groups are that live consumers have: up to where all of a partition is accepted, and how much above that. Of this group,
-- and of this topic, where they are given. Reads claims from end to end: there are as many as partitions.
select c."group", s.topic, c.partition, upper(a.ranges[1]), coalesce(a.above, 0),
       case when c.released then null else e.host || ', process ' || e.pid end
  from eventflow.claims c join eventflow.sources s on s.id = c.source
       left join eventflow.executors e on e.id = c.owner and e.alive,
       lateral (select array_agg(r order by r) as ranges,
                       sum(upper(r) - lower(r)) filter (where not lower_inf(r))::bigint as above
                  from unnest(c.accepted + coalesce(
                         (select range_agg(x) from eventflow.deltas d, unnest(d.ranges) x where d.claim = c.id), '{}')) r) a
 where not c.ended and c.reprocessing is null and not s.superseded
   and (%(group)b::text is null or c."group" = %(group)b::text) and (%(topic)b::text is null or s.topic = %(topic)b::text)
 order by 1, 2, 3
