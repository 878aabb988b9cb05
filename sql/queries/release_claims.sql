-- A clean end of ownership: the next owner need not be wary (R13), and knows how far the topic was verified and whose leader's
-- the last message was (R16). Only while the epoch is still ours.
update eventflow.claims
   set released = true, verified = greatest(claims.verified, t.verified), leader_epoch = t.leader_epoch, epoch_to = t.epoch_to
  from unnest(
         %(claims)b::bigint[], %(epochs)b::bigint[], %(verified)b::bigint[], %(leader_epochs)b::int[], %(epochs_to)b::bigint[]
       ) as t (claim, held, verified, leader_epoch, epoch_to)
 where id = t.claim and epoch = t.held and owner = %(executor)b::bigint
