-- Something that a person should look at.
insert into eventflow.incidents (kind, subject, detail) values (%(kind)b::text, %(subject)b::text, %(detail)b::text)
