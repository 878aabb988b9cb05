-- migration: 7 dead_letters
-- oldest_code: 1
-- A dead letter is the workflow of a message, failed or parked, with what each of its attempts failed with (ADR 13).

-- What the attempts of messages came to, where they failed: appended, and never changed.
create table eventflow.failures (
  id          bigint generated always as identity primary key,
  workflow_id text collate "C" not null,
  attempt     int not null,
  at          timestamptz not null default now(),
  type        text not null,              -- the exception's class
  error       text not null               -- JSON: type, message, arguments, traceback
);
create index failures_workflow on eventflow.failures (workflow_id, id);
insert into eventflow.failures (workflow_id, attempt, at, type, error)
  select w.id, w.attempt, w.finished_at, case when w.error like '{%' then coalesce(w.error::jsonb ->> 'type', '') else '' end, w.error
    from eventflow.workflows w where w.claim is not null and w.status = 'failed' and w.error is not null;

-- A message as it was before a person changed it, and who did; the first row is what Kafka had.
create table eventflow.edits (
  id          bigint generated always as identity primary key,
  workflow_id text collate "C" not null,
  at          timestamptz not null default now(),
  who         text not null,
  key         bytea,
  value       bytea,
  headers     text
);
create index edits_workflow on eventflow.edits (workflow_id, id);

create index workflows_dead on eventflow.workflows (created_at, id) where claim is not null and status in ('failed', 'parked');

-- Dead letters that are redelivered one after another, at a rate; whichever process serves them lets the next ones go.
create table eventflow.redeliveries (
  id          bigint generated always as identity primary key,
  application text collate "C" not null,
  who         text not null,
  at          timestamptz not null default now(),
  rate        float8,                     -- a second; null: as soon as there is room
  total       bigint not null,
  redelivered bigint not null default 0,
  passed_over bigint not null default 0,  -- were no dead letters any more when it was their turn
  credit      float8 not null default 1,  -- how many might have gone at `counted_at`
  counted_at  timestamptz not null default now(),
  ended_at    timestamptz,
  stopped_by  text
);
create index redeliveries_open on eventflow.redeliveries (application) where ended_at is null;

-- Whose turn it is yet.
create table eventflow.redelivery_items (
  redelivery  bigint not null,
  name        text collate "C" not null,
  n           bigint not null,
  workflow_id text collate "C" not null,
  primary key (redelivery, name, n)
);

alter table eventflow.requests drop constraint requests_kind_check;
alter table eventflow.requests add constraint requests_kind_check check
  (kind in ('cancel', 'terminate', 'resume', 'retry', 'restart', 'fork', 'delete', 'delay', 'redeliver', 'edit', 'drop'));

-- Dead letters, for people too: `select * from eventflow.dead_letters(consumer => 'bill')`. All of which is true what is given:
-- the handler's name, the group, the topic, the partition, the key, the class of the last error, the status, and when it last failed.
create function eventflow.dead_letters(
  app text default null, consumer text default null, in_group text default null, of_topic text default null,
  of_partition int default null, of_key bytea default null, of_error text default null, of_status text default null,
  since timestamptz default null, until timestamptz default null
) returns table (
  workflow_id text, name text, "group" text, topic text, incarnation int, partition int, "offset" bigint, "timestamp" bigint,
  status text, attempt int, failures bigint, created_at timestamptz, first_failed_at timestamptz, last_failed_at timestamptz,
  error text, reason text, key bytea, claim bigint
) language sql stable as $$
  select w.id, w.name, c."group", s.topic, s.incarnation, c.partition, w."offset", w.timestamp,
         w.status::text, w.attempt, f.n, w.created_at, f.first_at, f.last_at, w.error, w.reason, w.key, w.claim
    from eventflow.workflows w join eventflow.claims c on c.id = w.claim join eventflow.sources s on s.id = c.source,
         lateral (select count(*) as n, min(f.at) as first_at, max(f.at) as last_at, (array_agg(f.type order by f.id desc))[1] as type
                    from eventflow.failures f where f.workflow_id = w.id) f
   where w.claim is not null and w.status in ('failed', 'parked')
     and (app is null or w.application = app)
     and (consumer is null or w.name = consumer)
     and (in_group is null or c."group" = in_group)
     and (of_topic is null or s.topic = of_topic)
     and (of_partition is null or c.partition = of_partition)
     and (of_key is null or w.key = of_key)
     and (of_error is null or f.type = of_error or right(f.type, length(of_error) + 1) = '.' || of_error)
     and (of_status is null or w.status::text = of_status)
     and (since is null or coalesce(f.last_at, w.created_at) >= since)
     and (until is null or coalesce(f.last_at, w.created_at) < until)
$$;

-- Lock messages that are dead letters, for what a person does to them (EF009: one is none).
create function eventflow.hold_letters(ids text[], what text, by_whom text) returns text[] language plpgsql volatile as $$
declare
  held  text[] := eventflow.hold_for(ids, what, by_whom, '{failed,parked}');
  other text;
begin
  select w.id into other from eventflow.workflows w where w.id = any(held) and w.claim is null order by w.id limit 1;
  if found then
    raise exception '''%'' is no message''s, and no dead letter: it can be retried or resumed', other using errcode = 'EF009';
  end if;
  return held;
end $$;

-- Dead letters run again as what they are: what they recorded before they failed is replayed, not done again.
create function eventflow.redeliver(ids text[], by_whom text) returns bigint language sql volatile as $$
  select eventflow.run_again(eventflow.hold_letters(ids, 'redeliver', by_whom))
$$;

-- The same with another value, or other headers; what the message was is kept. Its key stays: its order goes by it.
create function eventflow.redeliver_edited(
  letter text, by_whom text, new_key bytea, new_value bytea, new_headers text
) returns bigint language plpgsql volatile as $$
declare held text[] := eventflow.hold_letters(array[letter], 'edit', by_whom);
begin
  insert into eventflow.edits (workflow_id, who, key, value, headers)
    select w.id, by_whom, w.key, w.value, w.headers from eventflow.workflows w where w.id = letter;
  update eventflow.workflows w set key = new_key, value = new_value, headers = new_headers where w.id = letter;
  return eventflow.run_again(held);
end $$;

-- Dead letters that nobody will handle: they stay, with why; `resume` takes that back.
create function eventflow.drop_letters(ids text[], by_whom text, why text) returns bigint language plpgsql volatile as $$
declare held text[] := eventflow.hold_letters(ids, 'drop', by_whom);
begin
  update eventflow.workflows w
     set status = 'cancelled', finished_at = now(), executor = null, reason = 'dropped by ' || by_whom || ': ' || why
   where w.id = any(held);
  return cardinality(held);
end $$;

-- All dead letters of which that is true, one after another, the oldest first; returns its number.
create function eventflow.redeliver_all(
  by_whom text, a_second float8, app text, consumer text, in_group text, of_topic text, of_partition int, of_key bytea, of_error text,
  of_status text, since timestamptz, until timestamptz
) returns bigint language plpgsql volatile as $$
declare
  made bigint;
  many bigint;
begin
  perform set_config('synchronous_commit', 'on', true);
  insert into eventflow.redeliveries (application, who, rate, total) values (app, by_whom, a_second, 0) returning id into made;
  insert into eventflow.redelivery_items (redelivery, name, n, workflow_id)
    select made, d.name, row_number() over (order by d.created_at, d.claim, d."offset"), d.workflow_id
      from eventflow.dead_letters(app, consumer, in_group, of_topic, of_partition, of_key, of_error, of_status, since, until) d;
  get diagnostics many = row_count;
  update eventflow.redeliveries r set total = many, ended_at = case when many = 0 then now() end where r.id = made;
  return made;
end $$;

-- Let those go whose turn it is, of these handlers, `most` at most; a rate that was not used up while nobody served it is not
-- made good for: a tenth of a second's worth at most goes at once. Returns how many went, and in how many seconds the next may.
create function eventflow.redeliver_due(app text, served text[], most bigint)
returns table (gone bigint, next_in float8) language plpgsql volatile as $$
declare
  one    record;
  moment timestamptz;
  saved  float8;
  budget bigint;
  chosen text[];
  held   text[];
begin
  perform set_config('synchronous_commit', 'on', true);
  gone := 0;
  for one in select * from eventflow.redeliveries r where r.application = app and r.ended_at is null order by r.id
                for update skip locked loop
    moment := clock_timestamp();
    saved := case when one.rate is not null
                  then least(greatest(1, one.rate / 10), one.credit + extract(epoch from moment - one.counted_at) * one.rate) end;
    budget := least(most - gone, floor(saved));  -- which is null without a rate, and then says nothing
    with taken as (
      delete from eventflow.redelivery_items i using (
        select o.name, o.n from eventflow.redelivery_items o
         where o.redelivery = one.id and o.name = any(served) order by o.n limit budget
      ) due where i.redelivery = one.id and i.name = due.name and i.n = due.n returning i.workflow_id
    )
    select coalesce(array_agg(taken.workflow_id), '{}') into chosen from taken;
    perform 1 from eventflow.workflows w where w.id = any(chosen) order by w.id for update;
    select coalesce(array_agg(w.id), '{}') into held from eventflow.workflows w
     where w.id = any(chosen) and w.status in ('failed', 'parked');
    perform eventflow.redeliver(held, one.who);
    update eventflow.redeliveries r
       set redelivered = r.redelivered + cardinality(held), passed_over = r.passed_over + cardinality(chosen) - cardinality(held),
           credit = coalesce(saved - cardinality(held), r.credit), counted_at = moment,
           ended_at = case when not exists (select from eventflow.redelivery_items i where i.redelivery = one.id) then now() end
     where r.id = one.id;
    gone := gone + cardinality(held);
    if exists (select from eventflow.redelivery_items i where i.redelivery = one.id and i.name = any(served)) then
      next_in := least(next_in, greatest(0, (1 - saved + cardinality(held)) / one.rate));
    end if;
  end loop;
  return next;
end $$;

-- Let no more of a redelivery go; what has gone, goes on. Returns 1; 0 where it has ended.
create function eventflow.stop_redelivery(redelivery_id bigint, by_whom text) returns bigint language plpgsql volatile as $$
declare stopped bigint;
begin
  update eventflow.redeliveries r set ended_at = now(), stopped_by = by_whom where r.id = redelivery_id and r.ended_at is null;
  get diagnostics stopped = row_count;
  if stopped > 0 then
    delete from eventflow.redelivery_items i where i.redelivery = redelivery_id;
  end if;
  return stopped;
end $$;

-- Forget workflows that have ended or are parked, and all that is theirs; who did it stays. Who sleeps until they end is woken.
create or replace function eventflow.forget(ids text[], by_whom text) returns bigint language plpgsql volatile as $$
declare held text[] := eventflow.hold_for(ids, 'delete', by_whom, '{succeeded,failed,cancelled,parked}');
begin
  delete from eventflow.checkpoints c where c.workflow_id = any(held);
  delete from eventflow.messages m where m.workflow_id = any(held);
  delete from eventflow.events e where e.workflow_id = any(held);
  delete from eventflow.stream_items i where i.workflow_id = any(held);
  delete from eventflow.watches v where v.workflow_id = any(held);
  delete from eventflow.signals s where s.workflow_id = any(held);
  delete from eventflow.failures f where f.workflow_id = any(held);
  delete from eventflow.edits e where e.workflow_id = any(held);
  insert into eventflow.signals (workflow_id) select distinct v.workflow_id from eventflow.watches v where v.target = any(held);
  delete from eventflow.workflows w where w.id = any(held);
  return cardinality(held);
end $$;
