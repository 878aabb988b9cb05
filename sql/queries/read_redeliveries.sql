-- Redeliveries, or one of them: how far each is, who wanted it. Reads the table, which has a row for each that a person ever ordered.
select id, who, at, rate, total, redelivered, passed_over, ended_at, stopped_by
  from eventflow.redeliveries
 where application = %(application)b::text and (%(redelivery)b::bigint is null or id = %(redelivery)b::bigint) order by id
