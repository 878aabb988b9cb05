-- Whether the relay is still held under this epoch (R17). Raises EF001. Locks its row FOR SHARE.
select eventflow.fence_relay(%(epoch)b::bigint)
