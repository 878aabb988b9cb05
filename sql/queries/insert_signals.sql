-- Something came for these workflows: whoever sleeps is woken by claim_woken.
insert into eventflow.signals (workflow_id) select unnest(%(workflow_id)b::text[])
