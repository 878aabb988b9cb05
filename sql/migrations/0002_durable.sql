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
create index messages_inbox on eventflow.messages (workflow_id, topic, id) where not consumed;
create unique index messages_key on eventflow.messages (workflow_id, key) where key is not null;

-- What a workflow tells everyone: the last value by key.
create table eventflow.events (
  workflow_id text collate "C" not null,
  key         text collate "C" not null,
  value       text not null,              -- JSON
  set_at      timestamptz not null default now(),
  primary key (workflow_id, key)
);

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
