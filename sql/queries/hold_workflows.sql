-- The workflows of transaction steps are still this executor's, and stay so until the commit (R8). Raises EF008.
-- Locks their rows FOR SHARE, after guard, in the order given, which is that of their ids (R4): their holder lets go of one, or a
-- taker frees it, before or after.
select eventflow.hold_workflow(%(executor)b::bigint, id) from unnest(%(ids)b::text[]) as id
