-- How far steps are that have begun, over what was kept of them before; of several in one flush the newest. At a position of their
-- own beside the step's, with a number above all others, so that whatever drops a step's checkpoint drops them.
-- Runs in the same transaction as, or after, the row of its workflow; another flush of this executor only writes the same rows.
insert into eventflow.checkpoints as c (workflow_id, position, seq, name, output, attempts, seconds)
select distinct on (workflow_id, position) workflow_id, position, 2147483647, name, output, 1, 0
  from unnest(%(workflow_id)b::text[], %(position)b::text[], %(name)b::text[], %(output)b::text[])
       with ordinality as t (workflow_id, position, name, output, n)
 order by workflow_id, position, n desc
on conflict (workflow_id, position) do update set output = excluded.output, finished_at = now()
