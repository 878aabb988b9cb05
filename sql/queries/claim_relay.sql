-- Take the relay over as it was seen, or claim one's own again; the new epoch (R17). Raises EF001. Locks: executors FOR KEY SHARE, the
-- relay's row, for which it waits until every transaction of the former holder has ended. A second run raises, or raises the epoch.
select eventflow.claim_relay(%(executor)b::bigint, %(seen)b::bigint)
