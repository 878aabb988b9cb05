-- A workflow's checkpoints in the order in which they were recorded, a row each, without tickets, which say only that a
-- transaction elsewhere has begun (ADR 8), and without the progress of steps that have not ended; or one row, with those that
-- stand inside the workflow's own (ADR 3), as they were written there. By primary keys.
select position, name, attempts, started_at, finished_at, error, steps from (
  select seq, position, name, attempts, finished_at - make_interval(secs => seconds) as started_at, finished_at, error, null as steps
    from eventflow.checkpoints where workflow_id = %(id)b::text and split_part(position, '~t', 2) = '' and position not like '%%~d'
  union all
  select 0, null, null, null, null, w.finished_at, null, w.steps
    from eventflow.workflows w where w.id = %(id)b::text and w.steps is not null
) as recorded order by seq
