-- Whoever was told to end has gone on, and begins anew: what was asked of its former run is done with. Index requests_workflow.
update eventflow.requests set settled = true where workflow_id = any(%(workflow_id)b::text[]) and kind = 'cancel' and not settled
