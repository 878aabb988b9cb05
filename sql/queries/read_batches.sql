-- All batches that are kept, oldest first.
select n, slot, id, events, at from eventflow.outbox_batches order by n
