-- What each group has of a topic's partition, whoever has it, and what stops it; of one offset, whether it is accepted, and whether
-- an incident has passed it over. Reads only: claims by their unique key, positions by index deltas_claim.
select c."group", s.topic, s.incarnation, c.partition, c.generation, c.released or c.owner = 0 as released, c.owner,
       coalesce(e.alive, false) as alive, e.host, e.pid, extract(epoch from now() - b.at)::float8 as silent,
       (select upper(r) from unnest(p.ranges) r order by lower(r) nulls first limit 1) as position,
       coalesce(p.ranges @> %(offset)b::bigint, false) as accepted, i.id as incident, i.kind, i.detail, i.choice,
       (select x.id from eventflow.incidents x where x.claim = c.id and x.skipped @> %(offset)b::bigint limit 1) as passed_by,
       u.n as unfinished, u.id as head, u.status as head_status, h.who as paused_by, h.why as paused_why
  from eventflow.sources s
  join eventflow.claims c on c.source = s.id
  cross join lateral (select c.accepted + coalesce(
         (select range_agg(r) from eventflow.deltas d, unnest(d.ranges) r where d.claim = c.id), '{}') as ranges) p
  left join eventflow.executors e on e.id = c.owner
  left join eventflow.beats b on b.executor = c.owner
  left join lateral (select i.id, i.kind, i.detail, i.choice from eventflow.incidents i
                      where i.claim = c.id and i.went_on_at is null order by i.id limit 1) i on true
  left join lateral (select h.who, h.why from eventflow.pauses h
                      where h."group" = c."group" and h.topic in ('', s.topic) and h.partition in (-1, c.partition) limit 1) h on true
  left join lateral (select count(*) as n, (array_agg(w.id order by w."offset"))[1] as id,
                            (array_agg(w.status::text order by w."offset"))[1] as status
                       from eventflow.workflows w
                      where w.claim = c.id and w.status in ('queued', 'running', 'waiting', 'parked')) u on true
 where s.topic = %(topic)b::text and c.partition = %(partition)b::int
   and (%(group)b::text is null or c."group" = %(group)b::text)
   and (%(incarnation)b::int is null and not s.superseded and not c.ended and c.reprocessing is null
        or s.incarnation = %(incarnation)b::int and c.generation = %(generation)b::int)
 order by c."group", c.generation
