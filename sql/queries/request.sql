-- Ask for workflows to end, with or without all that descends from them (R14). Appends; locks rows that nobody holds.
select eventflow.request(%(ids)b::text[], %(kind)b::text, %(who)b::text, %(children)b::boolean)
