-- Something that a person should look at; seen again, it is counted and its latest detail kept. By the index of those that are
-- open: what was settled stays, and is another one when it comes again.
insert into eventflow.incidents (kind, subject, detail) values (%(kind)b::text, %(subject)b::text, %(detail)b::text)
on conflict (kind, subject) where settled_at is null
do update set at = now(), times = incidents.times + 1, detail = excluded.detail
