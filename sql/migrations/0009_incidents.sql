-- migration: 9 incidents
-- oldest_code: 9
-- Incidents stop a partition until they are settled, over rebalances and restarts; code before this would read on.

-- What a partition of a truncated log goes on as is another generation: its offsets come a second time, and ids never do.
alter table eventflow.claims
  add column generation   int not null default 1,
  add column ended        boolean not null default false,  -- a later generation has its place
  add column leader_epoch int not null default -1,         -- of the last message below epoch_to; -1: not known (R16)
  add column epoch_to     bigint not null default 0,
  drop constraint claims_group_source_partition_key,
  add unique ("group", source, partition, generation);

-- What a delta was read with, for an owner that dies before it folds.
alter table eventflow.deltas
  add column leader_epoch int not null default -1,
  add column epoch_to     bigint not null default 0;

-- Where those begin that read the topic in another cluster: what was chosen for that incident; null: as their policy says.
alter table eventflow.sources add column begins text;

alter table eventflow.incidents
  add column claim        bigint,       -- the partition that stands still until this is settled; null: none does
  add column first_offset bigint,       -- the first one in doubt
  add column choice       text,         -- what comes of it: earliest, latest or retry
  add column settled_at   timestamptz,
  add column settled_by   text,
  add column went_on_at   bigint,       -- where the partition went on; null: not yet
  add column skipped      int8range,    -- what was passed over
  drop constraint incidents_kind_subject_key;
create unique index incidents_open on eventflow.incidents (kind, subject) where settled_at is null;
create index incidents_claim on eventflow.incidents (claim) where claim is not null and went_on_at is null;

-- Where a partition goes on after an incident, once: what it skips is accepted as read and stands in the incident; a log that
-- was truncated goes on as the next generation, under another claim, and this one ends. By the owner, before it reads.
create function eventflow.go_on(
  executor_id bigint, claim_id bigint, claim_epoch bigint, incident_id bigint, chosen text, chooser text,
  skip_from bigint, next_offset bigint, anew boolean
) returns void language plpgsql volatile as $$
declare passed int8multirange := case when next_offset > skip_from then int8multirange(int8range(skip_from, next_offset))
                                      else '{}' end;
begin
  perform eventflow.fence(executor_id);
  perform 1 from eventflow.claims where id = claim_id and owner = executor_id and epoch = claim_epoch for update;
  if not found then
    raise exception 'claim % lost by executor %', claim_id, executor_id
      using errcode = 'EF002', detail = claim_id::text;
  end if;
  update eventflow.incidents
     set choice = coalesce(choice, chosen), settled_by = coalesce(settled_by, chooser),
         settled_at = coalesce(settled_at, now()), went_on_at = next_offset,
         skipped = case when not isempty(passed) then int8range(skip_from, next_offset) end
   where id = incident_id and went_on_at is null;
  if not found then return; end if;
  if anew then
    insert into eventflow.claims
      ("group", source, partition, generation, owner, epoch, accepted, in_flight, verified, began)
    select "group", source, partition, generation + 1, 0, 0, int8multirange(int8range(null, next_offset)), 0,
           next_offset, chosen from eventflow.claims where id = claim_id;
    update eventflow.claims set ended = true, owner = 0, epoch = epoch + 1, released = true where id = claim_id;
    return;
  end if;
  passed := passed - (
    select c.accepted + coalesce(
             (select range_agg(r) from eventflow.deltas d, unnest(d.ranges) r where d.claim = c.id), '{}')
      from eventflow.claims c where c.id = claim_id);
  if not isempty(passed) then
    insert into eventflow.deltas (claim, epoch, ranges) values (claim_id, claim_epoch, passed);
  end if;
end $$;

-- A person's choice for an incident. EF012: there is no such incident, or it is settled, or the choice cannot be.
create function eventflow.settle(incident_id bigint, chosen text, who text) returns void language plpgsql volatile as $$
declare found_one record;
begin
  select kind, subject, claim, choice, settled_by into found_one
    from eventflow.incidents where id = incident_id for update;
  if not found then
    raise exception 'there is no incident %', incident_id using errcode = 'EF012';
  elsif found_one.choice is not null then
    raise exception 'incident % was settled by %: %', incident_id, found_one.settled_by, found_one.choice
      using errcode = 'EF012';
  elsif chosen not in ('earliest', 'latest', 'retry') then
    raise exception 'an incident is settled by earliest, latest or retry, not by %', chosen using errcode = 'EF012';
  elsif chosen <> 'retry' and found_one.claim is null and found_one.kind <> 'cluster' then
    raise exception 'incident % (%: %) stops nothing, so that nothing goes on elsewhere; retry settles it',
      incident_id, found_one.kind, found_one.subject using errcode = 'EF012';
  end if;
  update eventflow.incidents set choice = chosen, settled_at = now(), settled_by = who where id = incident_id;
end $$;

drop function eventflow.fold(bigint, bigint, bigint, bigint);
-- R5. The owner's fold: later statements see what the lock waited for; deletes exactly what it read; an overlap is an
-- incident that the fold finds but cannot undo (EF005).
create function eventflow.fold(
  executor_id bigint, claim_id bigint, claim_epoch bigint, verified_to bigint, last_epoch int, last_to bigint
) returns int8multirange language plpgsql volatile as $$
declare
  folded int8multirange;
  taken  bigint[];
  added  int8multirange;
  length bigint;
begin
  perform eventflow.fence(executor_id);
  select accepted into folded from eventflow.claims
   where id = claim_id and owner = executor_id and epoch = claim_epoch for update;
  if not found then
    raise exception 'claim % lost by executor %', claim_id, executor_id
      using errcode = 'EF002', detail = claim_id::text;
  end if;
  if (select superseded from eventflow.sources s join eventflow.claims c on c.source = s.id where c.id = claim_id) then
    raise exception 'claim %: its topic has been recreated', claim_id using errcode = 'EF007';
  end if;
  update eventflow.claims
     set verified = greatest(verified, verified_to), leader_epoch = last_epoch, epoch_to = last_to
   where id = claim_id and (verified < verified_to or epoch_to < last_to);
  select array_agg(d.id), range_agg(r), sum(upper(r) - lower(r)) into taken, added, length
    from eventflow.deltas d, unnest(d.ranges) r where d.claim = claim_id;
  if taken is null then
    return folded;
  end if;
  if folded && added or length <> (select sum(upper(r) - lower(r)) from unnest(added) r) then
    raise exception 'claim %: offsets were accepted twice', claim_id using errcode = 'EF005';
  end if;
  update eventflow.claims set accepted = accepted + added where id = claim_id returning accepted into folded;
  delete from eventflow.deltas where id = any(taken);
  return folded;
end $$;

drop function eventflow.register_source(text, text, text);
-- R16. Inserted once. A topic that is known from another cluster stays that one's, which is an incident, until a person
-- or the consumer's policy has chosen; `foreign_cluster` tells that nobody has.
create function eventflow.register_source(topic_name text, cluster text, topic_uuid text, policy text)
returns table (id bigint, incarnation int, foreign_cluster boolean, begins text) language plpgsql volatile as $$
#variable_conflict use_column
declare
  place  text := topic_name || ' in cluster ' || cluster;
  chosen text;
begin
  perform pg_advisory_xact_lock(hashtextextended('eventflow.sources ' || topic_name, 0));
  return query select s.id, s.incarnation, false, s.begins from eventflow.sources s
    where s.cluster_id = cluster and s.topic_id = topic_uuid and not s.superseded;
  if found then return; end if;
  if exists (select from eventflow.sources s where s.topic = topic_name and s.cluster_id <> cluster and not s.superseded) then
    update eventflow.incidents i set went_on_at = 0
     where i.kind = 'cluster' and i.subject = place and i.choice in ('earliest', 'latest') and i.went_on_at is null
    returning i.choice into chosen;
    if chosen is null then
      insert into eventflow.incidents (kind, subject, detail, choice, settled_at, settled_by, went_on_at)
        select 'cluster', place, 'the brokers are cluster ' || cluster || '; the topic was read in cluster ' || s.cluster_id
               || case when policy is null then ', and nothing of it is read until this is settled' else '' end,
               policy, case when policy is not null then now() end, case when policy is not null then 'on_incident' end,
               case when policy is not null then 0 end
          from eventflow.sources s where s.topic = topic_name and not s.superseded limit 1
      on conflict (kind, subject) where settled_at is null do update set at = now();
      chosen := policy;
    end if;
    if chosen is null then
      return query select 0::bigint, 0, true, null::text;
      return;
    end if;
    update eventflow.sources s set superseded = true where s.topic = topic_name;
    return query update eventflow.sources s set superseded = false
      where s.cluster_id = cluster and s.topic_id = topic_uuid returning s.id, s.incarnation, false, s.begins;
    if found then return; end if;
  elsif exists (select from eventflow.sources s where s.cluster_id = cluster and s.topic_id = topic_uuid) then
    return query select s.id, s.incarnation, false, s.begins from eventflow.sources s
      where s.cluster_id = cluster and s.topic_id = topic_uuid;  -- superseded: an answer of a broker that lags behind
    return;
  end if;
  -- What an owner that never let go of a partition may have read under the id that was: the topic may be the new one since.
  insert into eventflow.incidents (kind, subject, detail)
    select 'recreated', c."group" || ' ' || topic_name || case when s.incarnation > 1 then '#' || s.incarnation else '' end
                        || '/' || c.partition,
           'was recreated while executor ' || c.owner || ' had not let go of it; offsets ' || c.verified || ' to '
           || greatest(upper(c.accepted), (select max(upper(d.ranges)) from eventflow.deltas d where d.claim = c.id))
           || ' may be those of the new one'
      from eventflow.sources s join eventflow.claims c on c.source = s.id
     where s.topic = topic_name and s.cluster_id = cluster and not s.superseded and not c.released
    on conflict (kind, subject) where settled_at is null
    do update set at = now(), times = incidents.times + 1, detail = excluded.detail;
  update eventflow.sources s set superseded = true where s.topic = topic_name and s.cluster_id = cluster;
  return query insert into eventflow.sources as s (topic, incarnation, cluster_id, topic_id, begins)
    select topic_name, coalesce(max(o.incarnation), 0) + 1, cluster, topic_uuid, chosen
      from eventflow.sources o where o.topic = topic_name
    returning s.id, s.incarnation, false, s.begins;
end $$;
