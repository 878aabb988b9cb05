-- A clean end of ownership: the next owner need not be wary (R13). Only while the epoch is still ours.
update eventflow.claims set released = true
  from unnest(%(claims)b::bigint[], %(epochs)b::bigint[]) as t (claim, held)
 where id = t.claim and epoch = t.held and owner = %(executor)b::bigint
