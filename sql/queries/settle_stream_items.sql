-- These workflows begin anew, with an empty history: what they write at the same places is new. Index stream_items_source.
update eventflow.stream_items set source = null where workflow_id = any(%(workflow_id)b::text[]) and source is not null
