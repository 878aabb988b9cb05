-- An incident that stops a partition until it is settled (R16), or that is settled as it is recorded.
-- By the index of those that are open; seen again, it is counted, and holds the claim that the partition has now.
insert into eventflow.incidents (kind, subject, detail, claim, first_offset, choice, settled_by, settled_at)
values (%(kind)b::text, %(subject)b::text, %(detail)b::text, %(claim)b::bigint, %(first)b::bigint, %(choice)b::text,
        %(who)b::text, case when %(choice)b::text is not null then now() end)
on conflict (kind, subject) where settled_at is null
do update set at = now(), times = incidents.times + 1, detail = excluded.detail, claim = excluded.claim,
              first_offset = excluded.first_offset
