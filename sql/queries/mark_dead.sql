-- After lock_dead: from here on no transaction of that executor passes the fence.
update eventflow.executors set alive = false, died_at = now(), taken_by = %(executor)b::bigint where id = %(dead)b::bigint
