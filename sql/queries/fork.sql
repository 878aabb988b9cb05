-- New workflows from what others have recorded before a position (R14). Locks those others' rows; raises EF009 to EF012.
select eventflow.fork(t.id, t.fork_id, %(position)b::text, %(who)b::text)::text
  from (select * from unnest(%(ids)b::text[], %(fork_ids)b::text[]) as t (id, fork_id) order by t.id) as t
