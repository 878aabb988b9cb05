-- Every assignment is a new claim: a new epoch, also where the owner stays (R7).
update eventflow.claims
   set owner = %(executor)b::bigint, epoch = epoch + 1, released = false, in_flight = %(in_flight)b::int
 where id = any(%(claims)b::bigint[])
returning id, partition, epoch
