-- Final workflows run again from the beginning (R14). Locks their rows; raises EF009, EF010. A second run is refused.
select eventflow.restart(%(ids)b::text[], %(who)b::text)
