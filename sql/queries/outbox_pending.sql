-- Whether there is anything to publish, and anything to do with what was refused. By the primary key and index undelivered_wanted.
select exists (select from eventflow.outbox where id > %(low)b::bigint),
       exists (select from eventflow.undelivered where wanted is not null)
