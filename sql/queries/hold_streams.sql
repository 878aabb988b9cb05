-- A transaction step that appends to its workflow's streams takes the row as `insert_stream_items` does, before it shares it:
-- two that shared it first would wait for each other.
select 1 from eventflow.workflows where id = %(workflow_id)b::text for no key update
