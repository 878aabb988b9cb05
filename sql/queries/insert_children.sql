-- Children, in the flush of their parent's checkpoint: ids that no one else gives. A replay after a lost record finds them.
insert into eventflow.workflows (id, name, application, status, executor, parent, arguments, deadline, attributes)
select id, name, application, (case when executor is null then 'queued' else 'running' end)::eventflow.status, executor, parent, arguments, to_timestamp(deadline), attributes::jsonb
  from unnest(
    %(id)b::text[], %(name)b::text[], %(application)b::text[], %(executor)b::bigint[], %(parent)b::text[],
    %(arguments)b::text[], %(deadline)b::float8[], %(attributes)b::text[]
  ) as t (id, name, application, executor, parent, arguments, deadline, attributes)
on conflict (id) do nothing
