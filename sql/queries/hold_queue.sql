-- One process at a time takes from a queue that has limits: what it counts next, nobody changes meanwhile.
select 1 from eventflow.queues where application = %(application)b::text and name = %(queue)b::text for no key update
