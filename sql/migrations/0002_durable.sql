-- migration: 2 durable
-- oldest_code: 1
alter table eventflow.workflows add column parent text collate "C";
alter table eventflow.workflows add column deadline timestamptz;
alter table eventflow.workflows add column attributes jsonb;

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
  consumed    boolean not null default false
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
  kind        text not null check (kind in ('cancel', 'terminate')),
  who         text not null,
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
