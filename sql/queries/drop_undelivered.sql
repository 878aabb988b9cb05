-- A person wants these events dropped. After the relay's fence. A second run finds them gone.
delete from eventflow.undelivered where id = any(%(events)b::bigint[])
