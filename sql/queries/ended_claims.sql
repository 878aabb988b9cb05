-- Which of these claims have ended: another generation has their place. By the primary key.
select id from eventflow.claims where id = any(%(claims)b::bigint[]) and ended
