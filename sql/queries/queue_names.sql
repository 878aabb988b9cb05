-- Which queues there are.
select name from eventflow.queues where application = %(application)b::text
