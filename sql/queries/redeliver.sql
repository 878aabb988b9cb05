-- Dead letters run again from what they have recorded (R14). Locks their rows; raises EF009, EF010. A second run is refused.
select eventflow.redeliver(%(ids)b::text[], %(who)b::text)
