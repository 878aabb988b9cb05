-- A new workflow from what another one has recorded before a position (R14). Locks that one's row; raises EF009 to EF012.
select eventflow.fork(%(id)b::text, %(fork_id)b::text, %(position)b::text, %(who)b::text)::text
