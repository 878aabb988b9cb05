-- Begin nothing more of a reprocessing. Locks its claims, for which it waits until no open flush holds one; a second run changes
-- nothing. EF009, EF010.
select eventflow.stop_reprocessing(%(reprocessing)b::bigint, %(who)b::text)
