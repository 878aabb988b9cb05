-- A message as it was before each change that people made to it, in order. By the index edits_workflow.
select at, who, key, value, headers from eventflow.edits where workflow_id = %(id)b::text order by id
