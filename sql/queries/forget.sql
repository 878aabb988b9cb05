-- Delete final and parked workflows with all that is theirs (R14). Locks their rows; raises EF009, EF010. A second run finds none.
select eventflow.forget(%(ids)b::text[], %(who)b::text)
