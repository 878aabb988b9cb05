-- Events that were tried again and refused again; how many. After the relay's fence. A second run says the same again.
with found as (
  update eventflow.undelivered u set behind = t.behind, reason = t.reason, parked_at = now(), wanted = null
    from unnest(%(events)b::bigint[], %(behind)b::boolean[], %(reasons)b::text[]) as t (event, behind, reason)
   where u.id = t.event
  returning 1
)
select count(*) from found
