-- Number a batch of events; nobody else numbers while the relay's fence is held. A second run is refused by the primary key.
insert into eventflow.outbox_batches (n, slot, id, events, ids)
values (%(n)b::bigint, %(slot)b::int, %(id)b::text, %(events)b::int, %(ids)b::text::int8multirange)
