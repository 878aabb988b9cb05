-- A migration was applied, in the same transaction. Under lock_migrations; a second one is refused by the primary key.
insert into eventflow.migrations (version, name, oldest_code) values (%(version)b::int, %(name)b::text, %(oldest_code)b::int)
