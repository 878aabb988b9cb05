-- Failed workflows run again from the step that ended them (R14). Locks their rows; raises EF009, EF010. A second run is refused.
select eventflow.retry(%(ids)b::text[], %(who)b::text)
