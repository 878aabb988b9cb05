-- What of these messages is in the ledger, with what tells it from another message at the same offset (R16): digests, or of one
-- that a payload codec has encoded (its headers begin with ~) all of it, as only the codec can tell.
-- In a statement after end_former_claims, so that none is missed. By primary key.
select "offset", timestamp, sha256(key), sha256(value),
       case when headers like '~%%' then value end as stored, case when headers like '~%%' then headers end as label
  from eventflow.workflows where id = any(%(ids)b::text[])
