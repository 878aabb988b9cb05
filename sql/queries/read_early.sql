-- What of these messages is in the ledger, with what tells it from another message at the same offset (R16).
-- In a statement after end_former_claims, so that none is missed. By primary key.
select "offset", timestamp, sha256(key), sha256(value) from eventflow.workflows where id = any(%(ids)b::text[])
