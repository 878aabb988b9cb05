-- migration: 11 reprocessing
-- oldest_code: 11
-- A topic is run again as another generation of its consumer; code before this would take such a claim for the live one.

alter table eventflow.claims add column reprocessing bigint;  -- beside the live one, whose claims have none

-- A topic that is run again as another generation of a group: beside the live one, or in its place.
create table eventflow.reprocessings (
  id         bigint generated always as identity primary key,
  "group"    text not null,
  source     bigint not null references eventflow.sources (id),
  generation int not null,
  instead    boolean not null,            -- in the live one's place, which goes on from there
  rate       float8,                      -- messages a second, of all processes together
  who        text not null,
  at         timestamptz not null default now(),
  ended_at   timestamptz,
  stopped_by text
);
create unique index reprocessings_open on eventflow.reprocessings ("group", source) where ended_at is null;

-- From where to where each partition of it is run again.
create table eventflow.reprocessed (
  reprocessing bigint not null,
  partition    int not null,
  claim        bigint not null,
  first        bigint not null,
  past         bigint not null,           -- the offset after the last one
  primary key (reprocessing, partition)
);

-- A topic's partitions are run again from these offsets on, as the next generation of the group: beside the live one, up to where that
-- has come, or in its place. Its number. EF009: that is under way already, or somebody holds the claims for lock_timeout, or 10 s; EF012: the topic
-- was recreated, or nothing of it has been read.
create function eventflow.reprocess(
  by_whom text, in_group text, topic_source bigint, of_partitions int[], firsts bigint[], a_second float8, in_place boolean
) returns bigint language plpgsql volatile as $$
#variable_conflict use_column
declare
  patience text := current_setting('lock_timeout');
  made     bigint;
  next     int;
  former   bigint[];
begin
  perform set_config('synchronous_commit', 'on', true);
  if patience = '0' then
    perform set_config('lock_timeout', '10s', true);
  end if;
  begin
    perform 1 from eventflow.sources s where s.id = topic_source and not s.superseded for share;
    if not found then
      raise exception 'the topic was recreated meanwhile; ask again' using errcode = 'EF012';
    end if;
    perform 1 from eventflow.claims c where c."group" = in_group and c.source = topic_source order by c.id for no key update;
  exception when lock_not_available then
    raise exception 'somebody has held claims of group ''%'' for %; nothing was done: ask again, or end the session that holds them (%)',
      in_group, current_setting('lock_timeout'), 'see xact_start in pg_stat_activity' using errcode = 'EF009';
  end;
  perform set_config('lock_timeout', patience, true);
  select r.id into made from eventflow.reprocessings r
   where r."group" = in_group and r.source = topic_source and r.ended_at is null;
  if found then
    raise exception 'reprocessing % of this topic by group ''%'' has not ended; it is to end, or to be stopped, before the next',
      made, in_group using errcode = 'EF009';
  end if;
  select array_agg(p.claim order by p.claim) into former
    from eventflow.live_positions(in_group, topic_source) p join unnest(of_partitions, firsts) t (partition, first)
      on t.partition = p.partition and t.first < case when in_place then p.position else p.past end;
  if former is null then
    raise exception 'group ''%'' has read nothing of the topic from there on', in_group using errcode = 'EF012';
  end if;
  select 1 + max(c.generation) into next from eventflow.claims c where c."group" = in_group and c.source = topic_source;
  insert into eventflow.reprocessings ("group", source, generation, instead, rate, who)
    values (in_group, topic_source, next, in_place, a_second, by_whom) returning id into made;
  with parts as (
    select p.partition, t.first, case when in_place then p.position else p.past end as past, p.known
      from eventflow.live_positions(in_group, topic_source) p join unnest(of_partitions, firsts) t (partition, first)
        on t.partition = p.partition
     where p.claim = any(former)
  ), made_claims as (
    insert into eventflow.claims
      ("group", source, partition, generation, owner, epoch, accepted, in_flight, verified, began, reprocessing)
    select in_group, topic_source, p.partition, next, 0, 0,
           case when in_place then int8multirange(int8range(null, p.first))
                else '{(,)}' - p.known * int8multirange(int8range(p.first, p.past)) end,
           0, p.first, 'reprocess', case when not in_place then made end
      from parts p order by p.partition
    returning id, partition
  )
  insert into eventflow.reprocessed (reprocessing, partition, claim, first, past)
    select made, p.partition, m.id, p.first, p.past from parts p join made_claims m on m.partition = p.partition;
  if in_place then
    update eventflow.claims c set ended = true, owner = 0, epoch = c.epoch + 1, released = true where c.id = any(former);
    perform eventflow.leave_claims(former);
    update eventflow.incidents i
       set choice = coalesce(i.choice, 'earliest'), settled_by = coalesce(i.settled_by, by_whom),
           settled_at = coalesce(i.settled_at, now()), went_on_at = p.first
      from eventflow.reprocessed p join eventflow.claims m on m.id = p.claim join eventflow.claims c on c.partition = m.partition
     where p.reprocessing = made and c.id = any(former) and i.claim = c.id and i.went_on_at is null;
  end if;
  return made;
end $$;

-- Where a group is in a topic: the live claim of each partition, what is accepted, up to where all is, and behind the last of it.
create function eventflow.live_positions(in_group text, topic_source bigint)
returns table (claim bigint, "partition" int, known int8multirange, "position" bigint, past bigint) language sql stable as $$
  select c.id, c.partition, k.known, (select upper(r) from unnest(k.known) r limit 1), upper(k.known)
    from eventflow.claims c, lateral (
           select c.accepted + coalesce((select range_agg(d) from eventflow.deltas o, unnest(o.ranges) d where o.claim = c.id), '{}')
                    as known) k
   where c."group" = in_group and c.source = topic_source and not c.ended and c.reprocessing is null
$$;

-- Claims have ended: what is in line under them is for whoever comes first, in order of its scope.
create function eventflow.leave_claims(ended bigint[]) returns void language sql volatile as $$
  update eventflow.workflows set executor = null
   where claim = any(ended) and executor = 0 and status = 'queued' and scope is not null
$$;

-- How much of a reprocessing's partition is accepted, in offsets.
create function eventflow.reprocessed_offsets(claim_id bigint, first bigint, past bigint) returns bigint language sql stable as $$
  select coalesce(sum(upper(r) - lower(r)), 0)::bigint
    from eventflow.claims c, unnest(
           (c.accepted + coalesce((select range_agg(x) from eventflow.deltas d, unnest(d.ranges) x where d.claim = c.id), '{}'))
           * int8multirange(int8range(first, past))) r
   where c.id = claim_id
$$;

-- A reprocessing ends when all of it is accepted, and nothing of that is under way. Whether it has; by any of those that read it.
create function eventflow.end_reprocessing(executor_id bigint, number bigint) returns boolean language plpgsql volatile as $$
declare done boolean;
begin
  perform eventflow.fence(executor_id);
  select bool_and(
           eventflow.reprocessed_offsets(p.claim, p.first, p.past) = p.past - p.first
           and not exists (select from eventflow.workflows w
                            where w.claim = p.claim and w.status in ('queued', 'running', 'waiting') and w."offset" < p.past))
    into done from eventflow.reprocessed p where p.reprocessing = number;
  if done then
    perform 1 from eventflow.claims c where c.reprocessing = number order by c.id for no key update;
    update eventflow.reprocessings r set ended_at = now() where r.id = number and r.ended_at is null;
    update eventflow.claims c set ended = true where c.reprocessing = number and not c.ended;
  end if;
  return done;
end $$;

-- Nothing more of a reprocessing is begun; what has a row goes on. 1; 0: it had ended (EF010: there is none; EF009: it is live).
create function eventflow.stop_reprocessing(number bigint, by_whom text) returns bigint language plpgsql volatile as $$
#variable_conflict use_column
declare
  found_one record;
  former    bigint[];
begin
  perform set_config('synchronous_commit', 'on', true);
  perform 1 from eventflow.claims c where c.reprocessing = number order by c.id for no key update;
  select r.instead, r.ended_at into found_one from eventflow.reprocessings r where r.id = number for update;
  if not found then
    raise exception 'there is no reprocessing %', number using errcode = 'EF010';
  elsif found_one.ended_at is not null then
    return 0;
  elsif found_one.instead then
    raise exception 'reprocessing % is the live consumer by now, in place of the one before: it cannot be stopped, only paused',
      number using errcode = 'EF009';
  end if;
  with ended as (
    update eventflow.claims c set ended = true, owner = 0, epoch = c.epoch + 1, released = true where c.reprocessing = number
    returning c.id
  )
  select coalesce(array_agg(id), '{}') into former from ended;
  perform eventflow.leave_claims(former);
  update eventflow.reprocessings r set ended_at = now(), stopped_by = by_whom where r.id = number;
  return 1;
end $$;

-- Where a partition goes on after an incident, once: what it skips is accepted as read and stands in the incident; a log that
-- was truncated goes on as the next generation, under another claim, and this one ends. By the owner, before it reads.
create or replace function eventflow.go_on(
  executor_id bigint, claim_id bigint, claim_epoch bigint, incident_id bigint, chosen text, chooser text,
  skip_from bigint, next_offset bigint, anew boolean
) returns void language plpgsql volatile as $$
declare
  passed int8multirange := case when next_offset > skip_from then int8multirange(int8range(skip_from, next_offset)) else '{}' end;
  known  int8multirange;
begin
  perform eventflow.fence(executor_id);
  perform 1 from eventflow.claims where id = claim_id and owner = executor_id and epoch = claim_epoch for update;
  if not found then
    raise exception 'claim % lost by executor %', claim_id, executor_id
      using errcode = 'EF002', detail = claim_id::text;
  end if;
  select c.accepted + coalesce((select range_agg(r) from eventflow.deltas d, unnest(d.ranges) r where d.claim = c.id), '{}')
    into known from eventflow.claims c where c.id = claim_id;
  update eventflow.incidents
     set choice = coalesce(choice, chosen), settled_by = coalesce(settled_by, chooser),
         settled_at = coalesce(settled_at, now()), went_on_at = next_offset,
         skipped = case when not isempty(passed) then int8range(skip_from, next_offset) end
   where id = incident_id and went_on_at is null;
  if not found then return; end if;
  if anew then
    with made as (
      insert into eventflow.claims
        ("group", source, partition, generation, owner, epoch, accepted, in_flight, verified, began, reprocessing)
      select c."group", c.source, c.partition, (
               select max(o.generation) + 1 from eventflow.claims o
                where o."group" = c."group" and o.source = c.source and o.partition = c.partition),
             0, 0,
             known * int8multirange(int8range(null, skip_from)) + passed
               + case when c.reprocessing is null then '{}' else int8multirange(int8range(p.past, null)) end,
             0, next_offset, chosen, c.reprocessing
        from eventflow.claims c left join eventflow.reprocessed p on p.claim = c.id where c.id = claim_id
      returning id
    )
    update eventflow.reprocessed set claim = made.id from made where claim = claim_id;
    update eventflow.claims set ended = true, owner = 0, epoch = epoch + 1, released = true where id = claim_id;
    perform eventflow.leave_claims(array[claim_id]);
    return;
  end if;
  passed := passed - known;
  if not isempty(passed) then
    insert into eventflow.deltas (claim, epoch, ranges) values (claim_id, claim_epoch, passed);
  end if;
end $$;

-- R16. Inserted once. A topic that is known from another cluster stays that one's, which is an incident, until a person
-- or the consumer's policy has chosen; `foreign_cluster` tells that nobody has.
create or replace function eventflow.register_source(topic_name text, cluster text, topic_uuid text, policy text)
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
     where s.topic = topic_name and s.cluster_id = cluster and not s.superseded and not c.released and c.reprocessing is null
    on conflict (kind, subject) where settled_at is null
    do update set at = now(), times = incidents.times + 1, detail = excluded.detail;
  update eventflow.sources s set superseded = true where s.topic = topic_name and s.cluster_id = cluster;
  return query insert into eventflow.sources as s (topic, incarnation, cluster_id, topic_id, begins)
    select topic_name, coalesce(max(o.incarnation), 0) + 1, cluster, topic_uuid, chosen
      from eventflow.sources o where o.topic = topic_name
    returning s.id, s.incarnation, false, s.begins;
end $$;
