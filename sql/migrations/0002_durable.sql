-- migration: 2 durable
-- oldest_code: 1
alter table eventflow.workflows add column parent text collate "C";
alter table eventflow.workflows add column deadline timestamptz;
alter table eventflow.workflows add column attributes jsonb;
alter table eventflow.workflows add column generation int not null default 0;
alter table eventflow.workflows add column failed_seq int;

create index workflows_wake on eventflow.workflows (wake_at) where status = 'waiting' and executor is null;
create index workflows_parent on eventflow.workflows (parent) where parent is not null;

-- A workflow's inbox: received in order, each once; whoever receives it marks it in the flush of the receipt (R19).
create table eventflow.messages (
  id          bigint generated always as identity primary key,
  workflow_id text collate "C" not null,  -- no foreign key: it may not be accepted yet
  topic       text collate "C" not null,
  payload     text not null,              -- JSON
  key         text collate "C",           -- sent again under the same one, it is the same message
  sent_at     timestamptz not null default now(),
  consumed    boolean not null default false,
  position    text collate "C"            -- of the receipt
);
create index messages_inbox on eventflow.messages (workflow_id, topic, consumed, id);  -- the pruner goes by it, too
create unique index messages_key on eventflow.messages (workflow_id, key) where key is not null;

-- What a workflow tells everyone: the last value by key.
create table eventflow.events (
  workflow_id text collate "C" not null,
  key         text collate "C" not null,
  value       text not null,              -- JSON
  set_at      timestamptz not null default now(),
  primary key (workflow_id, key)
);

-- What a workflow appends to its streams. Whoever appends holds the workflow's row, so that ids rise in the order of commit.
create table eventflow.stream_items (
  id          bigint generated always as identity,
  workflow_id text collate "C" not null,
  key         text collate "C" not null,
  value       text,                       -- JSON; null: closed here
  source      text collate "C",           -- where it was written, and what: the same one is written once
  at          timestamptz not null default now(),
  primary key (workflow_id, key, id)
);
create unique index stream_items_source on eventflow.stream_items (workflow_id, source) where source is not null;

-- Something came for a workflow: whoever wakes it takes the row away; to one that does not sleep it says nothing.
create table eventflow.signals (
  id          bigint generated always as identity primary key,
  workflow_id text collate "C" not null,
  at          timestamptz not null default now()
);
create index signals_workflow on eventflow.signals (workflow_id);

-- What a sleeping workflow waits for that is another's: an event (by key) or its end (key '').
create table eventflow.watches (
  target      text collate "C" not null,
  key         text collate "C" not null,
  workflow_id text collate "C" not null,
  primary key (target, key, workflow_id)
);
create index watches_workflow on eventflow.watches (workflow_id);

-- What people asked for, and who: whoever holds the workflow, or takes it, sees to it in his own flush (R14).
create table eventflow.requests (
  id          bigint generated always as identity primary key,
  workflow_id text collate "C" not null,
  kind        text not null check (kind in ('cancel', 'terminate', 'resume', 'retry', 'restart', 'fork', 'delete')),
  who         text not null,
  settled     boolean not null default false,  -- done, or overtaken by what was done later
  at          timestamptz not null default now()
);
create index requests_workflow on eventflow.requests (workflow_id);

-- R14. Ask for workflows, and if so wished all that descends from them, to end; those that nobody holds are woken for it, and
-- parked ones end at once. Returns how many it is about.
create function eventflow.request(ids text[], what text, by_whom text, with_children boolean) returns bigint
language plpgsql volatile as $$
declare family text[];
begin
  with recursive all_of (id) as (
    select unnest(ids) collate "C"
    union
    select w.id from eventflow.workflows w join all_of on w.parent = all_of.id where with_children
  )
  select coalesce(array_agg(w.id order by w.id), '{}') into family
    from eventflow.workflows w join all_of on all_of.id = w.id where w.finished_at is null;
  insert into eventflow.requests (workflow_id, kind, who) select unnest(family), what, by_whom;
  update eventflow.workflows w
     set status = 'cancelled', finished_at = now(),
         reason = case what when 'cancel' then 'cancelled by ' else 'terminated by ' end || by_whom
   where w.id = any(family) and w.executor is null
     and (w.status = 'parked' or what = 'terminate'
          or (w.status = 'queued' and not exists (select from eventflow.checkpoints c where c.workflow_id = w.id)));
  -- To all of them: one that is going to sleep just now is woken by it.
  insert into eventflow.signals (workflow_id)
    select unnest(family)
    union all
    select distinct w.parent from eventflow.workflows w
     where w.id = any(family) and w.status = 'cancelled' and w.parent is not null;
  return cardinality(family);
end $$;

-- R14. Lock workflows, in order of id, for what a person does to them, and record who did what; only what nobody runs and
-- whose state allows it (EF009, EF010). What was asked of them before is settled by it. Returns their ids.
create function eventflow.hold_for(ids text[], what text, by_whom text, allowed eventflow.status[]) returns text[]
language plpgsql volatile as $$
declare
  held  text[];
  wrong record;
begin
  perform set_config('synchronous_commit', 'on', true);
  perform 1 from eventflow.workflows w where w.id = any(ids) order by w.id for update;
  select i into wrong from unnest(ids) i where not exists (select from eventflow.workflows w where w.id = i) order by i limit 1;
  if found then
    raise exception 'no workflow has the id ''%''', wrong.i using errcode = 'EF010';
  end if;
  select w.id, w.status, w.executor into wrong from eventflow.workflows w
   where w.id = any(ids) and (w.status <> all(allowed) or (w.finished_at is null and w.executor is not null))
   order by w.id limit 1;
  if found and wrong.status = any(allowed) then
    raise exception '''%'' is %, and executor % holds it: % is for workflows that no executor holds', wrong.id, wrong.status,
      wrong.executor, what using errcode = 'EF009';
  elsif found then
    raise exception '''%'' is %: % is for workflows that are %', wrong.id, wrong.status, what,
      array_to_string(allowed, ' or ') using errcode = 'EF009';
  end if;
  select coalesce(array_agg(w.id order by w.id), '{}') into held from eventflow.workflows w where w.id = any(ids);
  if what <> 'fork' then
    update eventflow.requests r set settled = true where r.workflow_id = any(held) and not r.settled;
  end if;
  insert into eventflow.requests (workflow_id, kind, who, settled) select unnest(held), what, by_whom, true;
  return held;
end $$;

-- Workflows that are held run again, by whoever serves them: what ended them is forgotten, and from the checkpoint that did
-- on what they recorded is dropped, the step's former attempts too; messages received there are to be received again.
create function eventflow.run_again(held text[]) returns bigint language plpgsql volatile as $$
begin
  with dropped as (
    delete from eventflow.checkpoints c using eventflow.workflows w
     where w.id = any(held) and c.workflow_id = w.id
       and (c.seq >= w.failed_seq
            or split_part(c.position, '~', 1) in (select f.position from eventflow.checkpoints f
                                                   where f.workflow_id = w.id and f.seq = w.failed_seq))
    returning c.workflow_id, c.position
  )
  update eventflow.messages m set consumed = false, position = null
    from dropped d where m.workflow_id = d.workflow_id and m.position = d.position;
  update eventflow.workflows w
     set status = 'queued', executor = null, finished_at = null, wake_at = null, retries = 0, recoveries = 0, output = null,
         error = null, reason = null, failed_seq = null, deadline = case when w.deadline > now() then w.deadline end
   where w.id = any(held);
  return cardinality(held);
end $$;

-- Parked and cancelled workflows go on; what a cancelled one recorded after it was told so is dropped.
create function eventflow.resume(ids text[], by_whom text) returns bigint language sql volatile as $$
  select eventflow.run_again(eventflow.hold_for(ids, 'resume', by_whom, '{parked,cancelled}'))
$$;

-- Failed workflows run again from the step whose exception ended them.
create function eventflow.retry(ids text[], by_whom text) returns bigint language sql volatile as $$
  select eventflow.run_again(eventflow.hold_for(ids, 'retry', by_whom, '{failed}'))
$$;

-- Final workflows run again from the beginning, with all messages that they were ever sent.
create function eventflow.restart(ids text[], by_whom text) returns bigint language plpgsql volatile as $$
declare held text[] := eventflow.hold_for(ids, 'restart', by_whom, '{succeeded,failed,cancelled}');
begin
  delete from eventflow.checkpoints c where c.workflow_id = any(held);
  delete from eventflow.events e where e.workflow_id = any(held);
  delete from eventflow.watches v where v.workflow_id = any(held);
  update eventflow.messages m set consumed = false, position = null where m.workflow_id = any(held) and m.consumed;
  update eventflow.workflows w set steps = null where w.id = any(held) and w.steps is not null;
  return eventflow.run_again(held);
end $$;

-- A new workflow with the same name and arguments, and with what another one recorded before a position: of none, from the
-- beginning (EF011: its id is taken; EF012: nothing was recorded at that position).
create function eventflow.fork(source_id text, fork_id text, from_position text, by_whom text) returns void
language plpgsql volatile as $$
declare from_seq int;
begin
  perform eventflow.hold_for(array[source_id], 'fork', by_whom, enum_range(null::eventflow.status));
  if (select w.arguments is null from eventflow.workflows w where w.id = source_id) then
    raise exception '''%'' is a message''s, whose place in Kafka is in its id: it can be restarted, not forked', source_id
      using errcode = 'EF009';
  end if;
  insert into eventflow.workflows (id, name, application, status, arguments, attributes, deadline)
    select fork_id, w.name, w.application, 'queued', w.arguments, w.attributes, case when w.deadline > now() then w.deadline end
      from eventflow.workflows w where w.id = source_id
    on conflict (id) do nothing;
  if not found then
    raise exception 'the id ''%'' is taken', fork_id using errcode = 'EF011';
  end if;
  if from_position is null then
    return;
  end if;
  select c.seq into from_seq from eventflow.checkpoints c where c.workflow_id = source_id and c.position = from_position;
  if not found then
    raise exception '''%'' has recorded nothing at position ''%''', source_id, from_position using errcode = 'EF012';
  end if;
  insert into eventflow.checkpoints (finished_at, seconds, seq, attempts, workflow_id, position, name, output, error)
    select c.finished_at, c.seconds, c.seq, c.attempts, fork_id, c.position, c.name, c.output, c.error
      from eventflow.checkpoints c
     where c.workflow_id = source_id and c.seq < from_seq
       and split_part(c.position, '~', 1) <> from_position and c.position <> from_position || 'w';
end $$;

-- Forget workflows that have ended or are parked, and all that is theirs; who did it stays.
create function eventflow.forget(ids text[], by_whom text) returns bigint language plpgsql volatile as $$
declare held text[] := eventflow.hold_for(ids, 'delete', by_whom, '{succeeded,failed,cancelled,parked}');
begin
  delete from eventflow.checkpoints c where c.workflow_id = any(held);
  delete from eventflow.messages m where m.workflow_id = any(held);
  delete from eventflow.events e where e.workflow_id = any(held);
  delete from eventflow.watches v where v.workflow_id = any(held);
  delete from eventflow.signals s where s.workflow_id = any(held);
  delete from eventflow.workflows w where w.id = any(held);
  return cardinality(held);
end $$;
