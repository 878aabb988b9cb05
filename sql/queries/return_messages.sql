-- Unread again: a retry has dropped the receipts. By primary key; a second run changes nothing.
update eventflow.messages set consumed = false where id = any(%(id)b::bigint[])
