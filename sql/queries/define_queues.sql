-- What this code says of its queues; what people have changed stays over it.
insert into eventflow.queues as q (application, name, defined)
select %(application)b::text, t.name, t.defined::jsonb from unnest(%(name)b::text[], %(defined)b::text[]) as t (name, defined)
 order by t.name
on conflict (application, name) do update set defined = excluded.defined where q.defined <> excluded.defined
