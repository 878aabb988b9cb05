-- migration: 6 schedules
-- oldest_code: 1
-- Schedules, and ids that only they give.

-- When workflows are started by themselves: by what code has defined, the last process that started, or what a person has made.
create table eventflow.schedules (
  application text collate "C" not null,
  name        text collate "C" not null,
  workflow    text collate "C" not null,  -- the name of what it starts
  arguments   text,                       -- JSON: what it is started with, behind the fire where it takes that; null: nothing
  takes_fire  boolean not null,
  timeout     float8,                     -- seconds that each has
  defined     jsonb not null,             -- when, in which zone, what about overlaps: cron.Rule
  made_by     text,                       -- a person; null: code
  next_at     timestamptz,                -- the fire time that is decided next; null: there is none
  due_at      timestamptz,                -- when somebody is to look; null: paused, or nothing to come
  fired_at    timestamptz,                -- the last fire time for which a workflow was started
  running     text[] not null default '{}',  -- what it has started and may not have ended, where that matters
  filling     text[] not null default '{}',  -- the same of its backfills
  skipped     bigint not null default 0,  -- fire times that started nothing, for something else ran
  missed      bigint not null default 0,  -- how often fire times were too late to be caught up with
  paused      boolean not null default false,
  note        text not null default '',   -- why, in words
  changed_by  text,
  changed_at  timestamptz,
  primary key (application, name)
);
create index schedules_due on eventflow.schedules (application, due_at) where due_at is not null;

-- Fire times that wait until what was started before them has ended.
create table eventflow.fires (
  application text collate "C" not null,
  name        text collate "C" not null,
  at          timestamptz not null,
  cause       text not null check (cause in ('schedule', 'catch_up', 'backfill')),
  primary key (application, name, at)
);

create or replace function eventflow.enqueue(
  workflow text, args jsonb default '[]', kwargs jsonb default '{}', queue text default 'default', key text default null,
  priority int default 0, delay interval default null, run_at timestamptz default null, deduplication_id text default null,
  workflow_id text default null, if_exists text default 'attach', timeout interval default null,
  attributes jsonb default null, application text default 'default'
) returns text language plpgsql volatile as $$
declare
  wanted text := coalesce(workflow_id, gen_random_uuid()::text);
  given  text := jsonb_build_object('args', args, 'kwargs', kwargs)::text;
  found_ record;
begin
  if jsonb_typeof(args) is distinct from 'array' or jsonb_typeof(kwargs) is distinct from 'object' then
    raise exception 'args is a JSON array, kwargs a JSON object' using errcode = '22023';
  end if;
  if if_exists is null or if_exists not in ('attach', 'reject') then
    raise exception 'if_exists is ''attach'' or ''reject'', not ''%''', if_exists using errcode = '22023';
  end if;
  if wanted = '' or length(wanted) > 512 or wanted ~ '[>[:cntrl:]]' or wanted like 'kafka:%' or wanted like 'schedule:%' then
    raise exception 'not a workflow id: ''%''', wanted using errcode = '22023';
  end if;
  select * into found_ from eventflow.place(
    wanted, workflow, application, queue, given, key, priority, extract(epoch from delay)::float8, run_at, deduplication_id,
    null, null, extract(epoch from timeout)::float8, null, attributes, null);
  if not found_.added then
    if if_exists = 'attach' and found_.id = wanted and found_.name = workflow and found_.arguments like '~%' then
      raise exception '''%'' exists, and its arguments are encrypted: only a Client with the key can tell if these are the same',
        found_.id using errcode = 'EF011';
    end if;
    if if_exists = 'reject' or found_.name <> workflow or (
      case when found_.id = wanted and found_.arguments not like '~%' then found_.arguments::jsonb <> given::jsonb end) then
      raise exception '''%'' exists: ''%'' is %, created at %', found_.id, found_.name, found_.status, found_.created_at
        using errcode = 'EF011';
    end if;
  end if;
  return found_.id;
end $$;
