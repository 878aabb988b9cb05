-- Received: in the flush of the receipt's checkpoint (R19). By primary key; a second run changes nothing.
update eventflow.messages set consumed = true where id = any(%(id)b::bigint[])
