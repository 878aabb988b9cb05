-- migration: 5 management
-- oldest_code: 1
-- What the ledger tells people of versions and of what a process serves, and what management leaves behind: nothing.

alter table eventflow.executors add column version text;  -- of the application, for people: nobody decides anything by it
alter table eventflow.executors add column queues text[];  -- that it serves, for people too; null: all
alter table eventflow.executors add column schedules text[];  -- that it fires, of workflows that it knows; null: all

drop function eventflow.birth(text, jsonb, text, int, int);

-- Birth of an executor (R3: with row 0 of every lane). Names are per application: one that a living executor registered
-- from another file is refused, naming both.
create function eventflow.birth(
  app text, workflow_names jsonb, machine text, process int, lane_count int, app_version text default null,
  queue_names text[] default null, schedule_names text[] default null
)
returns table (executor bigint, timeline text) language plpgsql volatile as $$
#variable_conflict use_column
declare
  born  bigint;
  clash record;
  line  text := '';
begin
  perform pg_advisory_xact_lock(hashtextextended('eventflow.birth ' || app, 0));
  select n.key as name, n.value #>> '{}' as there, workflow_names ->> n.key as here, e.host, e.pid into clash
    from eventflow.executors e, jsonb_each(e.names) n
   where e.alive and e.application = app and workflow_names ? n.key and workflow_names -> n.key <> n.value limit 1;
  if found then
    raise exception 'the workflow name % is registered from % by process % on %, and from % here',
      clash.name, clash.there, clash.pid, clash.host, clash.here using errcode = 'EF006';
  end if;
  begin
    line := eventflow.timeline();
  exception when insufficient_privilege or feature_not_supported or object_not_in_prerequisite_state then
    line := '';
  end;
  insert into eventflow.executors (application, timeline, names, host, pid, version, queues, schedules)
  values (app, line, workflow_names, machine, process, app_version, queue_names, schedule_names) returning id into born;
  insert into eventflow.beats (executor, beat, at) values (born, 0, now());
  insert into eventflow.flushes (executor, lane, n, nonce) select born, lane, 0, 0 from generate_series(0, lane_count - 1) lane;
  return query select born, line;
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
  delete from eventflow.watches v using eventflow.workflows w
   where v.workflow_id = any(family) and w.id = v.workflow_id and w.status = 'cancelled';
  -- To all of them: one that is going to sleep just now is woken by it.
  insert into eventflow.signals (workflow_id)
    select unnest(family)
    union all
    select distinct w.parent from eventflow.workflows w
     where w.id = any(family) and w.status = 'cancelled' and w.parent is not null
    union all
    select distinct v.workflow_id from eventflow.watches v join eventflow.workflows w on w.id = v.target
     where v.key = '' and w.id = any(family) and w.status = 'cancelled';
  return cardinality(family);
end $$;

-- Workflows that are held run again, by whoever serves them or from the end of their queue's line: what ended them is forgotten,
-- and from the checkpoint that did on what they recorded is dropped, the step's former attempts too; messages received there are
-- to be received again. In line only its parent's time runs, where it has one; its own begins when it does.
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
         error = null, reason = null, failed_seq = null,
         deadline = case when w.queue is null and w.deadline > now() then w.deadline
                         when w.queue is not null then (select p.deadline from eventflow.workflows p
                                                         where p.id = w.parent and p.deadline > now()) end,
         executor = case when w.queue is not null then 0 end, taken = null,
         deduplication_id = case when w.status = 'parked' then w.deduplication_id end,
         attempt = w.attempt + (w.queue is not null)::int,
         placed = case when w.queue is not null then pg_current_xact_id() end,
         place = case when w.queue is not null then eventflow.moment() end
   where w.id = any(held);
  return cardinality(held);
end $$;

-- Final workflows run again from the beginning, with all messages that they were ever sent.
create or replace function eventflow.restart(ids text[], by_whom text) returns bigint language plpgsql volatile as $$
declare held text[] := eventflow.hold_for(ids, 'restart', by_whom, '{succeeded,failed,cancelled}');
begin
  delete from eventflow.checkpoints c where c.workflow_id = any(held);
  delete from eventflow.events e where e.workflow_id = any(held);
  delete from eventflow.stream_items i where i.workflow_id = any(held);
  delete from eventflow.watches v where v.workflow_id = any(held);
  update eventflow.messages m set consumed = false, position = null where m.workflow_id = any(held) and m.consumed;
  update eventflow.workflows w set steps = null where w.id = any(held) and w.steps is not null;
  return eventflow.run_again(held);
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
    select fork_id, w.name, w.application, 'queued', w.arguments, w.attributes,
           case when w.queue is null and w.deadline > now() then w.deadline end,
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
  insert into eventflow.signals (workflow_id) select distinct v.workflow_id from eventflow.watches v where v.target = any(held);
  delete from eventflow.workflows w where w.id = any(held);
  return cardinality(held);
end $$;
