-- The newest incidents: all, or those that are not settled yet. Backwards by the primary key.
select id, kind, subject, detail, first_at, at, times, claim is not null or kind = 'cluster', first_offset, choice,
       settled_by, settled_at, went_on_at, lower(skipped), upper(skipped)
  from eventflow.incidents where %(settled)b::boolean or settled_at is null
 order by id desc limit 1000
