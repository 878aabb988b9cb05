-- What stands in line under names that this process does not know, for a warning. Reads all that stands in line.
select queue, name, count(*) from eventflow.workflows
 where executor = 0 and placed is not null and application = %(application)b::text and queue = any(%(queues)b::text[])
   and not name = any(%(names)b::text[])
 group by 1, 2
