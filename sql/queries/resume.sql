-- Parked and cancelled workflows go on (R14). Locks their rows; raises EF009, EF010. A second run is refused.
select eventflow.resume(%(ids)b::text[], %(who)b::text)
