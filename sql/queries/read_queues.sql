-- The settings of queues, as code has defined them and people have changed them.
select name, (defined || changed)::text, paused from eventflow.queues
 where application = %(application)b::text and name = any(%(queues)b::text[])
