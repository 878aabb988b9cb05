-- Received: in the flush of the receipt's checkpoint (R19). By primary key; a second run changes nothing.
update eventflow.messages m
   set consumed = true, position = t.position from unnest(%(id)b::bigint[], %(position)b::text[]) as t (id, position)
 where m.id = t.id
