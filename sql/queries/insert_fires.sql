-- Put fire times in line, behind what was started before; one that stands there stays.
insert into eventflow.fires (application, name, at, cause)
select %(application)b::text, t.name, t.at::timestamptz, t.cause
  from unnest(%(name)b::text[], %(at)b::text[], %(cause)b::text[]) as t (name, at, cause)
on conflict (application, name, at) do nothing
