-- Let no more of a redelivery go. Locks its row; a second run finds that it has ended.
select eventflow.stop_redelivery(%(redelivery)b::bigint, %(who)b::text)
