-- What each group has of each topic's partitions: position, whether a living process has it, what stops it, what has not ended.
-- Reads the claims, and by index deltas_claim what is not folded yet.
select c."group", s.topic, c.partition,
       (select upper(r) from unnest(c.accepted + coalesce(
          (select range_agg(r) from eventflow.deltas d, unnest(d.ranges) r where d.claim = c.id), '{}')) r
         order by lower(r) nulls first limit 1),
       not c.released and exists (select from eventflow.executors e where e.id = c.owner and e.alive),
       (select i.id from eventflow.incidents i where i.claim = c.id and i.went_on_at is null order by i.id limit 1),
       (select count(*) from eventflow.workflows w where w.claim = c.id and w.status in ('queued', 'running', 'waiting', 'parked'))
  from eventflow.claims c join eventflow.sources s on s.id = c.source
 where not c.ended and c.reprocessing is null and not s.superseded order by c."group", s.topic, c.partition
