-- A transaction step's workflow is still this executor's, and stays so until the commit (R8). Raises EF008.
-- Locks its row FOR SHARE, after guard: its holder lets go of it, or a taker frees it, before or after.
select eventflow.hold_workflow(%(executor)b::bigint, %(workflow_id)b::text)
