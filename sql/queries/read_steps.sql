-- A workflow's checkpoints in the order in which they were recorded, from wherever they stand (ADR 3), without tickets, which
-- say only that a transaction elsewhere has begun (ADR 8). By primary keys.
select position, name, attempts, finished_at - make_interval(secs => seconds), finished_at, error from (
  select seq::bigint, position, name, attempts, seconds, finished_at, error
    from eventflow.checkpoints where workflow_id = %(id)b::text and split_part(position, '~t', 2) = ''
  union all
  select n, s ->> 0, s ->> 1, (s ->> 4)::int, (s ->> 5)::real, w.finished_at, s ->> 3
    from eventflow.workflows w, jsonb_array_elements(w.steps::jsonb) with ordinality as t (s, n) where w.id = %(id)b::text
) as steps order by seq
