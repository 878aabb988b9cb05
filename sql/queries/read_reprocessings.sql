-- What is, or was, run again, with each partition's range and how much of that is accepted: all, or that of a number. Changes nothing.
select r.id, r."group", s.topic, r.generation, r.instead, r.rate, r.who, r.at, r.ended_at, r.stopped_by, p.partition, p.first, p.past,
       eventflow.reprocessed_offsets(p.claim, p.first, p.past)
  from eventflow.reprocessings r join eventflow.sources s on s.id = r.source join eventflow.reprocessed p on p.reprocessing = r.id
 where %(reprocessing)b::bigint is null or r.id = %(reprocessing)b::bigint
 order by r.id, p.partition
