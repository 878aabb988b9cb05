-- The same with a changed message; what it was is kept (R14). Locks its row; raises EF009, EF010. A second run is refused.
select eventflow.redeliver_edited(
  (%(id)b::text[])[1], %(who)b::text, (%(key)b::bytea[])[1], (%(value)b::bytea[])[1], (%(headers)b::text[])[1])
