-- The generation that a group would read a topic as next. By the unique key of claims.
select 1 + max(generation) from eventflow.claims where "group" = %(group)b::text and source = %(source)b::bigint
