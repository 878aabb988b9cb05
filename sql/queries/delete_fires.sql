-- Fire times leave the line: of each schedule this one, or, where none is said, all that are its own and no backfill's.
delete from eventflow.fires f using unnest(%(name)b::text[], %(at)b::text[]) as t (name, at)
 where f.application = %(application)b::text and f.name = t.name
   and (f.at = t.at::timestamptz or (t.at is null and f.cause <> 'backfill'))
