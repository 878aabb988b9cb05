-- The cluster that this ledger publishes to, set when it is first seen; one row. A second run changes nothing.
update eventflow.relay set cluster_id = coalesce(cluster_id, %(cluster_id)b::text) where epoch = %(epoch)b::bigint
returning cluster_id
