-- Dead letters that nobody will handle end as cancelled, and stay (R14). Locks their rows; raises EF009, EF010. A second run is refused.
select eventflow.drop_letters(%(ids)b::text[], %(who)b::text, %(why)b::text)
