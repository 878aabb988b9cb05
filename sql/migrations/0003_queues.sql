-- migration: 3 queues
-- oldest_code: 1

-- What code has defined of a queue, the last process that started, and what people have changed over that.
create table eventflow.queues (
  application text collate "C" not null,
  name        text collate "C" not null,
  defined     jsonb not null default '{}',
  changed     jsonb not null default '{}',
  paused      boolean not null default false,
  changed_by  text,
  changed_at  timestamptz,
  primary key (application, name)
);

-- How many began when: a rate is kept by looking back over its period.
create table eventflow.queue_starts (
  application text collate "C" not null,
  queue       text collate "C" not null,
  key         text collate "C" not null,
  at          timestamptz not null,
  n           int not null
);
create index queue_starts_at on eventflow.queue_starts (application, queue, at);

alter table eventflow.workflows add column queue text collate "C";
alter table eventflow.workflows add column queue_key text collate "C";
alter table eventflow.workflows add column priority int;
alter table eventflow.workflows add column deduplication_id text collate "C";
alter table eventflow.workflows add column settles_by timestamptz;
alter table eventflow.workflows add column timeout float8;
alter table eventflow.workflows add column placed xid8;
alter table eventflow.workflows add column place bigint;
alter table eventflow.workflows add column taken xid8;

create index workflows_line on eventflow.workflows (application, queue, priority, queue_key, placed, place)
  where executor = 0 and placed is not null;
create index workflows_arrivals on eventflow.workflows (application, queue, placed) where executor = 0 and placed is not null;
create index workflows_delayed on eventflow.workflows (wake_at) where executor = 0 and placed is null;
create index workflows_slots on eventflow.workflows (application, queue, taken)
  where taken is not null and status in ('queued', 'running', 'waiting');
create unique index workflows_deduplication on eventflow.workflows (application, queue, deduplication_id)
  where deduplication_id is not null and status in ('queued', 'running', 'waiting', 'parked');

-- Microseconds: which of what one transaction puts in line came first.
create function eventflow.moment() returns bigint language sql volatile as $$
  select (extract(epoch from clock_timestamp()) * 1000000)::bigint
$$;

-- Put a workflow in line, or, where its id or its deduplication id is taken, tell who has it (EF013: there is no such queue).
-- `wait` and `until`: not before. `settle`: a later call with this deduplication id takes the place of one that still waits,
-- and it waits again, for `settle_limit` after the first call at most.
create function eventflow.place(
  new_id text, workflow text, app text, to_queue text, args text, line_key text, prio int, wait float8, until timestamptz,
  dedup text, settle float8, settle_limit float8, time_limit float8, ends timestamptz, attrs jsonb, parent_id text
) returns table (id text, added boolean, name text, status text, arguments text, created_at timestamptz)
language plpgsql volatile as $$
#variable_conflict use_column
declare
  due timestamptz := greatest(now() + make_interval(secs => wait), until, now() + make_interval(secs => settle));
begin
  perform set_config('synchronous_commit', 'on', true);
  if to_queue <> 'default' and not exists (select from eventflow.queues q where q.application = app and q.name = to_queue) then
    raise exception 'there is no queue ''%'': no process of application ''%'' that defines it has ever run', to_queue, app
      using errcode = 'EF013';
  end if;
  if to_queue is null or workflow is null or not isfinite(coalesce(due, now()))
     or time_limit not between 0 and 31557600000 or length(line_key) > 500 or length(dedup) > 500 then
    raise exception 'a workflow''s name and queue are not null, a key has 500 characters and a timeout a thousand years at most'
      using errcode = '22023';
  end if;
  if settle_limit is not null then
    due := least(due, now() + make_interval(secs => settle_limit));
  end if;
  if due <= now() then
    due := null;
  end if;
  for attempt in 1 .. 20 loop
    insert into eventflow.workflows as w
      (id, name, application, status, executor, arguments, queue, queue_key, priority, wake_at, deduplication_id, settles_by,
       timeout, deadline, attributes, parent, placed, place)
    values
      (new_id, workflow, app, 'queued', 0, args, to_queue, coalesce(line_key, ''), coalesce(prio, 0), due,
       case when settle is null or due is not null then dedup end,
       case when settle is not null then coalesce(now() + make_interval(secs => settle_limit), 'infinity') end,
       time_limit, ends, attrs, parent_id,
       case when due is null then pg_current_xact_id() end, case when due is null then eventflow.moment() end)
    on conflict do nothing;
    if found then
      return query select new_id, true, workflow, 'queued'::text, args, now();
      return;
    end if;
    if settle is not null then
      return query
        update eventflow.workflows w
           set arguments = args, wake_at = least(due, w.settles_by), attributes = coalesce(attrs, w.attributes)
         where w.application = app and w.queue = to_queue and w.deduplication_id = dedup and w.executor = 0
           and w.placed is null and w.status = 'queued' and w.name = workflow
        returning w.id, true, w.name, w.status::text, w.arguments, w.created_at;
      if found then
        return;
      end if;
    end if;
    return query
      select w.id, false, w.name, w.status::text, w.arguments, w.created_at from eventflow.workflows w
       where w.id = new_id
          or (w.application = app and w.queue = to_queue and w.deduplication_id = dedup
              and w.status in ('queued', 'running', 'waiting', 'parked'))
       order by w.id = new_id desc limit 1;
    if found then
      return;
    end if;  -- it has ended in between, or let go of its deduplication id
  end loop;
  raise exception 'the deduplication id ''%'' of queue ''%'' changes hands all the time', dedup, to_queue using errcode = '40001';
end $$;

-- For any language: put a workflow in line, in the caller's own transaction. Returns its id; that of the one that has this
-- deduplication id, or this id with the same arguments, where there is one and `if_exists` is 'attach' (EF011: where it is not,
-- or that cannot be told, for its arguments are encrypted).
create function eventflow.enqueue(
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
  if wanted = '' or length(wanted) > 512 or wanted ~ '[>[:cntrl:]]' or wanted like 'kafka:%' then
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

-- Workflows that are held run again, by whoever serves them or from the end of their queue's line: what ended them is forgotten,
-- and from the checkpoint that did on what they recorded is dropped, the step's former attempts too; messages received there are
-- to be received again.
create or replace function eventflow.run_again(held text[]) returns bigint language plpgsql volatile as $$
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
     set status = 'queued', finished_at = null, wake_at = null, retries = 0, recoveries = 0, output = null,
         error = null, reason = null, failed_seq = null, deadline = case when w.deadline > now() then w.deadline end,
         executor = case when w.queue is not null then 0 end, taken = null,
         deduplication_id = case when w.status = 'parked' then w.deduplication_id end,
         attempt = w.attempt + (w.queue is not null)::int,
         placed = case when w.queue is not null then pg_current_xact_id() end,
         place = case when w.queue is not null then eventflow.moment() end
   where w.id = any(held);
  return cardinality(held);
end $$;

-- R14. Ask for workflows, and if so wished all that descends from them, to end; those that nobody holds are woken for it, and
-- parked ones end at once. Returns how many it is about.
create or replace function eventflow.request(ids text[], what text, by_whom text, with_children boolean) returns bigint
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
     set status = 'cancelled', finished_at = now(), executor = null,
         reason = case what when 'cancel' then 'cancelled by ' else 'terminated by ' end || by_whom
   where w.id = any(family) and (w.executor is null or w.executor = 0)
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
create or replace function eventflow.hold_for(ids text[], what text, by_whom text, allowed eventflow.status[]) returns text[]
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
   where w.id = any(ids) and (w.status <> all(allowed) or (w.finished_at is null and w.executor <> 0))
   order by w.id limit 1;
  if found and wrong.status = any(allowed) then
    raise exception '''%'' is %, and executor % holds it: % is for workflows that no executor holds', wrong.id, wrong.status,
      wrong.executor, what using errcode = 'EF009';
  elsif found then
    raise exception '''%'' is %: % is for workflows that are %', wrong.id, wrong.status, what,
      array_to_string(allowed, ' or ') using errcode = 'EF009';
  end if;
  select coalesce(array_agg(w.id order by w.id), '{}') into held from eventflow.workflows w where w.id = any(ids);
  if what not in ('fork', 'delay') then
    update eventflow.requests r set settled = true where r.workflow_id = any(held) and not r.settled;
  end if;
  insert into eventflow.requests (workflow_id, kind, who, settled) select unnest(held), what, by_whom, true;
  return held;
end $$;

alter table eventflow.requests drop constraint requests_kind_check;
alter table eventflow.requests add check
  (kind in ('cancel', 'terminate', 'resume', 'retry', 'restart', 'fork', 'delete', 'delay'));

-- Workflows that wait in their queues wait until another time: by when, or so many seconds from now (EF009: it has begun).
create function eventflow.delay(ids text[], by_whom text, wait float8, until timestamptz) returns bigint
language plpgsql volatile as $$
declare
  held  text[] := eventflow.hold_for(ids, 'delay', by_whom, '{queued}');
  due   timestamptz := greatest(now() + make_interval(secs => wait), until);
  other text;
begin
  if due is null or not isfinite(due) then
    raise exception 'delay takes seconds from now, or a time' using errcode = '22023';
  end if;
  select w.id into other from eventflow.workflows w where w.id = any(held) and w.executor is distinct from 0 limit 1;
  if found then
    raise exception '''%'' has begun: delay is for workflows that wait in a queue', other using errcode = 'EF009';
  end if;
  update eventflow.workflows w
     set wake_at = case when due > now() then due end, settles_by = case when w.settles_by < due then due else w.settles_by end,
         deduplication_id = case when due > now() or w.settles_by is null then w.deduplication_id end,
         placed = case when due <= now() then pg_current_xact_id() end,
         place = case when due <= now() then eventflow.moment() end
   where w.id = any(held);
  return cardinality(held);
end $$;

-- A new workflow with the same name and arguments, and with what another one recorded before a position: of none, from the
-- beginning; through its queue's line, where it has one (EF011: its id is taken; EF012: nothing was recorded at that position).
create or replace function eventflow.fork(source_id text, fork_id text, from_position text, by_whom text) returns void
language plpgsql volatile as $$
declare from_seq int;
begin
  perform eventflow.hold_for(array[source_id], 'fork', by_whom, enum_range(null::eventflow.status));
  if (select w.arguments is null from eventflow.workflows w where w.id = source_id) then
    raise exception '''%'' is a message''s, whose place in Kafka is in its id: it can be restarted, not forked', source_id
      using errcode = 'EF009';
  end if;
  insert into eventflow.workflows
    (id, name, application, status, arguments, attributes, deadline, executor, queue, queue_key, priority, timeout, placed, place)
    select fork_id, w.name, w.application, 'queued', w.arguments, w.attributes, case when w.deadline > now() then w.deadline end,
           case when w.queue is not null then 0 end, w.queue, w.queue_key, w.priority, w.timeout,
           case when w.queue is not null then pg_current_xact_id() end, case when w.queue is not null then eventflow.moment() end
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
