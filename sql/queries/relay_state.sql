-- Who relays, whether he lives and how his beat stands, and whether anything was ever published. One row; the same as in the beat.
select r.epoch, r.holder, coalesce(e.alive, false), b.beat,
       case when exists (select from eventflow.outbox_batches) then true else exists (select from eventflow.outbox) end
  from eventflow.relay r
  left join eventflow.executors e on e.id = r.holder
  left join eventflow.beats b on b.executor = r.holder
