-- Something that a person should look at; seen again, it is counted and its latest detail kept. By the unique key.
insert into eventflow.incidents (kind, subject, detail) values (%(kind)b::text, %(subject)b::text, %(detail)b::text)
on conflict (kind, subject) do update set at = now(), times = incidents.times + 1, detail = excluded.detail
