-- Where a group is in a topic: of each partition, up to where all is accepted, and behind the last that is. By the unique key of claims.
select partition, position, past from eventflow.live_positions(%(group)b::text, %(source)b::bigint) order by partition
