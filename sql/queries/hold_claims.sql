-- Whether these claims are still this executor's (EF002: with those that are not). Locks them FOR SHARE, in order of id, until the
-- transaction ends; changes nothing (R5).
select eventflow.hold_claims(%(executor)b::bigint, %(claims)b::bigint[], %(epochs)b::bigint[])
