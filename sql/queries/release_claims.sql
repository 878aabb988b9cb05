-- A clean end of ownership: the next owner need not be wary (R13), and knows how far the topic was verified (R16). Only while
-- the epoch is still ours.
update eventflow.claims set released = true, verified = greatest(claims.verified, t.verified)
  from unnest(%(claims)b::bigint[], %(epochs)b::bigint[], %(verified)b::bigint[]) as t (claim, held, verified)
 where id = t.claim and epoch = t.held and owner = %(executor)b::bigint
