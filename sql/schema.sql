-- The ledger of eventflow: everything that must survive a process stands in these tables.
--
-- Read this file; the database gets there by the numbered files of migrations/, and a test proves both equal.
-- The story in five lines:
--   An *executor* is one run of one process. Its identity row is written at birth and at its death, never between;
--   its *beat* beside it says that it lives. Every transaction that writes for a workflow first takes the identity
--   row FOR KEY SHARE (fence), numbers itself (flushes), holds the claims of the partitions it accepts from (claims),
--   and only then appends positions (deltas), workflows and checkpoints. Takeover takes the identity FOR UPDATE and
--   marks it dead: nothing a zombie sends can commit after that. The rules by number: docs/model/PROTOCOL.md.
--
-- SQLSTATEs of our own: EF001 the executor is dead; EF002 a claim is lost (detail: claim ids);
-- EF003 the ledger lost commits; EF004 a statement met other rows than it was sent for; EF005 offsets were accepted twice;
-- EF006 a name is another program's; EF007 a topic was recreated; EF008 a workflow was let go of; EF009 its state does not
-- allow it; EF010 there is none of this id; EF011 its id is taken; EF012 nothing was recorded at a position; EF013 there is no
-- such queue.

create type eventflow.status as enum
  ('queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled', 'parked');

-- One row per applied migration. `oldest_code` is the oldest schema version whose code may go on working
-- on a database that has this migration.
create table eventflow.migrations (
  version     int primary key,
  name        text not null,
  oldest_code int not null,
  applied_at  timestamptz not null default now()
);

-- Who this ledger is, in databases that keep something for it: a row, with a random id.
create table eventflow.ledger (
  id  uuid not null default gen_random_uuid(),
  one boolean primary key default true check (one)
);
insert into eventflow.ledger default values;

-- Who runs. Written at birth; afterwards only a takeover, or its own clean end, sets alive to false (R2, R9).
create table eventflow.executors (
  id          bigint generated always as identity primary key,
  application text not null,
  alive       boolean not null default true,
  timeline    text not null,              -- the server's timeline at birth; '' where it cannot be read
  names       jsonb not null,             -- workflow name -> the file that defines it
  host        text not null,
  pid         int not null,
  born_at     timestamptz not null default now(),
  died_at     timestamptz,
  taken_by    bigint,
  version     text,                       -- of the application, for people: nobody decides anything by it
  queues      text[],                     -- that it serves, for people too; null: all
  schedules   text[]                      -- that it fires, of workflows that it knows; null: all
);
create index executors_alive on eventflow.executors (application) where alive;

-- The lease: apart from the identity, so that renewing it never touches the fenced row.
create table eventflow.beats (
  executor bigint primary key,
  beat     bigint not null,
  at       timestamptz not null
) with (fillfactor = 50);

-- The numbers of committed flushes, per lane; the newest is never deleted (R3).
create table eventflow.flushes (
  executor bigint not null,
  lane     int not null,
  n        bigint not null,
  nonce    bigint not null,
  primary key (executor, lane, n)
);

-- A source is one incarnation of a topic (R16).
create table eventflow.sources (
  id          bigint generated always as identity primary key,
  topic       text not null,
  incarnation int not null,
  cluster_id  text not null,
  topic_id    text not null,
  superseded  boolean not null default false,
  seen_at     timestamptz not null default now(),
  begins      text,  -- where those begin that read the topic in another cluster, as was chosen for that incident
  unique (topic, incarnation),
  unique (cluster_id, topic_id)
);

-- Who owns a partition of a source for a group, and what of it is accepted. Only claims and folds update it (R5, R7).
create table eventflow.claims (
  id         bigint generated always as identity primary key,
  "group"    text not null,
  source     bigint not null references eventflow.sources (id),
  partition  int not null,
  owner      bigint not null,
  epoch      bigint not null default 1,
  accepted   int8multirange not null,     -- starts at minus infinity; the position is the first upper bound
  released   boolean not null default true,  -- whether the last owner let go of it cleanly (R13)
  in_flight  int not null,                -- the owner's bound on messages in flight (R13)
  verified   bigint not null,             -- everything below was read before the topic was last seen to be the same (R16)
  began      text not null,               -- how its first position was chosen
  generation   int not null default 1,    -- a log that was truncated goes on as the next: its offsets come again, ids never do
  ended        boolean not null default false,  -- a later generation has its place
  leader_epoch int not null default -1,   -- of the last message below epoch_to; -1: not known (R16)
  epoch_to     bigint not null default 0,
  reprocessing bigint,                    -- beside the live one, whose claims have none
  unique ("group", source, partition, generation)
);

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

-- What is not read until a person says so: a group, one of its topics, or one partition of that.
create table eventflow.pauses (
  "group"   text not null,
  topic     text not null default '',     -- '': all topics of the group
  partition int not null default -1,      -- -1: all partitions
  who       text not null,
  why       text not null,
  at        timestamptz not null default now(),
  primary key ("group", topic, partition)
);

-- Ranges of offsets accepted by one flush: appended, folded into the claim now and then, never a position (R5).
create table eventflow.deltas (
  id     bigint generated always as identity primary key,
  claim  bigint not null,
  epoch  bigint not null,
  ranges int8multirange not null,
  leader_epoch int not null default -1,   -- as in claims: of the last message that was read when it was written
  epoch_to     bigint not null default 0
);
create index deltas_claim on eventflow.deltas (claim);

create table eventflow.workflows (
  created_at  timestamptz not null default now(),
  finished_at timestamptz,
  executor    bigint,                     -- who holds it while it is unfinished; null: whoever comes first; 0: its queue
  claim       bigint,                     -- a message's partition ...
  "offset"    bigint,                     -- ... and offset in it
  timestamp   bigint,                     -- the message's timestamp, milliseconds
  attempt     int not null default 1,     -- counts runs, and only identifies (R13)
  retries     int not null default 0,     -- by policy, after a failure
  recoveries  int not null default 0,     -- after the death of the process that ran it
  wake_at     timestamptz,                -- not to run before
  status      eventflow.status not null,
  id          text collate "C" primary key,
  name        text collate "C" not null,
  application text collate "C" not null,
  scope       text collate "C",           -- what is kept in order; null: nothing
  arguments   text,                       -- JSON; null for a message, whose input is key, value and headers
  key         bytea,
  value       bytea,
  headers     text,                       -- JSON: [[name, base64 or null], ...]
  output      text,                       -- JSON
  steps       text,                       -- JSON: its checkpoints, where row and outcome were written at once (ADR 3)
  error       text,                       -- JSON: type, message, arguments, traceback
  reason      text,                       -- why it is parked, in words
  parent      text collate "C",           -- the workflow that started it
  deadline    timestamptz,                -- failed when it has not ended by then
  attributes  jsonb,                      -- to search by
  generation  int not null default 0,     -- how often it was continued as new
  failed_seq  int,                        -- of the checkpoint that ended it: from there on a retry drops what is recorded
  queue       text collate "C",           -- whose line it waits in, or waited in
  queue_key   text collate "C",           -- what the queue's limits by key, and its fairness, go by; '' is a key, too
  priority    int,                        -- the smallest goes first
  deduplication_id text collate "C",      -- one unfinished workflow of the queue has it
  settles_by  timestamptz,                -- until it is in line, a call with its deduplication id takes its place; its last time
  timeout     float8,                     -- seconds that it has from when it begins
  placed      xid8,                       -- the transaction that put it in line; null: not before wake_at
  place       bigint,                     -- ... and which of those that this transaction has put there
  taken       xid8,                       -- the transaction that took it out of its line: it fills a place in its queue
  check ((finished_at is not null) = (status in ('succeeded', 'failed', 'cancelled')))
);
create index workflows_executor on eventflow.workflows (executor, status)
  where status in ('queued', 'running', 'waiting');
create index workflows_scope on eventflow.workflows (scope, "offset")
  where scope is not null and status in ('queued', 'running', 'waiting', 'parked');
create index workflows_claim on eventflow.workflows (claim, "offset")
  where status in ('queued', 'running', 'waiting', 'parked');

create index workflows_wake on eventflow.workflows (wake_at) where status = 'waiting' and executor is null;
create index workflows_parent on eventflow.workflows (parent) where parent is not null;

-- Messages that are dead letters.
create index workflows_dead on eventflow.workflows (created_at, id) where claim is not null and status in ('failed', 'parked');

-- A queue's lines, one for each priority and key; what has come into any of them since a transaction; what is to come; what
-- fills a place in its queue; who has a deduplication id.
create index workflows_line on eventflow.workflows (application, queue, priority, queue_key, placed, place)
  where executor = 0 and placed is not null;
create index workflows_arrivals on eventflow.workflows (application, queue, placed) where executor = 0 and placed is not null;
create index workflows_delayed on eventflow.workflows (wake_at) where executor = 0 and placed is null;
create index workflows_slots on eventflow.workflows (application, queue, taken)
  where taken is not null and status in ('queued', 'running', 'waiting');
create unique index workflows_deduplication on eventflow.workflows (application, queue, deduplication_id)
  where deduplication_id is not null and status in ('queued', 'running', 'waiting', 'parked');

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

-- What a workflow's operations came to; replayed, never run again (R12).
create table eventflow.checkpoints (
  finished_at timestamptz not null default now(),
  seconds     real not null,
  seq         int not null,               -- one counter per workflow, over all branches
  attempts    int not null,
  workflow_id text collate "C" not null,
  position    text collate "C" not null,
  name        text collate "C" not null,
  output      text,
  error       text,
  primary key (workflow_id, position)
);

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

-- Of which trace a workflow is, where that is recorded: whoever runs it next goes on with it.
create table eventflow.traces (
  workflow_id text collate "C" primary key,
  cause       text,                       -- the span that it was started by, a W3C traceparent; null: its message's headers tell
  span        text                        -- that of the run that wrote its row
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

-- What people asked for, and who: whoever holds the workflow, or takes it, sees to it in his own flush (R14).
create table eventflow.requests (
  id          bigint generated always as identity primary key,
  workflow_id text collate "C" not null,
  kind        text not null check (
    kind in ('cancel', 'terminate', 'resume', 'retry', 'restart', 'fork', 'delete', 'delay', 'redeliver', 'edit', 'drop')),
  who         text not null,
  settled     boolean not null default false,  -- done, or overtaken by what was done later
  at          timestamptz not null default now()
);
create index requests_workflow on eventflow.requests (workflow_id);

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

-- Events on their way to Kafka: appended in the transaction that they belong to, deleted once they are out (R17). Ids are drawn by
-- the INSERT itself, one by one: the relay's lower bound rests on both.
create table eventflow.outbox (
  id      bigint generated always as identity (cache 1) primary key,
  at      timestamptz not null default now(),
  topic   text not null,
  key     bytea,
  value   bytea,                          -- null: a tombstone
  headers text                            -- JSON: [[name, base64 or null], ...]
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, vacuum_truncate = off);

-- Who relays, and to which cluster: one row. Only a claim, a release and a first sight of the cluster update it.
create table eventflow.relay (
  epoch      bigint not null default 0,
  holder     bigint,                      -- an executor; null: whoever comes first
  cluster_id text,
  one        boolean primary key default true check (one)
);
insert into eventflow.relay default values;

-- What has been sent together in one Kafka transaction, which holds this number and this id, too. At most one is due: the highest,
-- while its events are there. One that was never committed in Kafka may be taken back; none is ever changed.
create table eventflow.outbox_batches (
  n      bigint primary key,
  slot   int not null,                    -- the transactional id that it is sent with, and no other
  id     text not null,
  events int not null,
  ids    int8multirange not null,
  at     timestamptz not null default clock_timestamp()
);

-- Events that Kafka refuses for good, and those of the same topic and key that wait behind them. Only the relay moves them.
create table eventflow.undelivered (
  id        bigint primary key,           -- as in the outbox
  at        timestamptz not null,
  topic     text not null,
  key       bytea,
  value     bytea,
  headers   text,
  behind    boolean not null,             -- nothing is wrong with it: one before it, of its key, is in the way
  reason    text not null,
  parked_at timestamptz not null default now(),
  wanted    text check (wanted in ('retry', 'drop'))  -- what a person has decided
);
create index undelivered_wanted on eventflow.undelivered (id) where wanted is not null;

-- What a person should look at: a partition that stopped, a source that changed, a guard that fired.
create table eventflow.incidents (
  id          bigint generated always as identity primary key,
  at          timestamptz not null default now(),  -- when it was seen last
  first_at    timestamptz not null default now(),
  times       int not null default 1,
  kind        text not null,
  subject     text not null,
  detail      text not null,
  claim        bigint,       -- the partition that stands still until this is settled; null: none does
  first_offset bigint,       -- the first one in doubt
  choice       text,         -- what comes of it: earliest, latest or retry
  settled_at   timestamptz,
  settled_by   text,
  went_on_at   bigint,       -- where the partition went on; null: not yet
  skipped      int8range     -- what was passed over
);
create unique index incidents_open on eventflow.incidents (kind, subject) where settled_at is null;
create index incidents_claim on eventflow.incidents (claim) where claim is not null and went_on_at is null;

create function eventflow.timeline() returns text language sql volatile as $$
  select substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)
$$;

-- R2. Raises where a row count could be overlooked by a pipelined COMMIT.
create function eventflow.fence(executor_id bigint) returns void language plpgsql volatile as $$
declare born text;
begin
  -- A plan made while a table was empty would scan it for ever: plan each flush at the tables' real size.
  perform set_config('plan_cache_mode', 'force_custom_plan', true);
  select timeline into born from eventflow.executors where id = executor_id and alive for key share;
  if not found then
    raise exception 'executor % is dead: its lease ran out and a peer took over', executor_id
      using errcode = 'EF001';
  end if;
  if born <> '' and born <> eventflow.timeline() then
    raise exception 'executor % was born on timeline %, the server is on another', executor_id, born
      using errcode = 'EF003';
  end if;
end $$;

-- R3. Insert first, look for the predecessor in a later statement, always.
create function eventflow.number_flush(executor_id bigint, lane_number int, flush_n bigint, flush_nonce bigint)
returns void language plpgsql volatile as $$
begin
  insert into eventflow.flushes (executor, lane, n, nonce)
  values (executor_id, lane_number, flush_n, flush_nonce);
  perform 1 from eventflow.flushes
   where executor = executor_id and lane = lane_number and n = flush_n - 1 for key share;
  if not found then
    raise exception 'flush % of executor % in lane % lacks its predecessor: the ledger lost commits',
      flush_n, executor_id, lane_number using errcode = 'EF003';
  end if;
end $$;

-- R5. FOR SHARE belongs together with the plain UPDATE of a claim: a weaker lock would let it pass.
create function eventflow.hold_claims(executor_id bigint, claim_ids bigint[], claim_epochs bigint[])
returns void language plpgsql volatile as $$
declare held bigint[];
begin
  select coalesce(array_agg(c.id), '{}') into held from (
    select claims.id from eventflow.claims
      join unnest(claim_ids, claim_epochs) as wanted (id, epoch)
        on claims.id = wanted.id and claims.epoch = wanted.epoch
     where claims.owner = executor_id order by claims.id for share of claims
  ) as c;
  if cardinality(held) <> cardinality(claim_ids) then
    raise exception 'claims lost by executor %', executor_id using errcode = 'EF002',
      detail = array_to_string(array(select unnest(claim_ids) except select unnest(held)), ',');
  end if;
end $$;

-- R2, where the timeline cannot be read: whatever was acknowledged to the executor, in any lane, must still be there.
create function eventflow.check_acknowledged(executor_id bigint, acknowledged bigint[]) returns void
language plpgsql volatile as $$
declare gone record;
begin
  select a.lane - 1 as lane, a.n into gone from unnest(acknowledged) with ordinality as a (n, lane)
   where not exists (select from eventflow.flushes f
                      where f.executor = executor_id and f.lane = a.lane - 1 and f.n >= a.n) limit 1;
  if found then
    raise exception 'flush % of executor % in lane % was acknowledged and is gone: the ledger lost commits',
      gone.n, executor_id, gone.lane using errcode = 'EF003';
  end if;
end $$;

-- R1: own identity, flush number, claims; then the caller writes everything else and commits.
create function eventflow.guard(
  executor_id bigint, lane_number int, flush_n bigint, flush_nonce bigint,
  claim_ids bigint[], claim_epochs bigint[], acknowledged bigint[]
) returns void language plpgsql volatile as $$
begin
  perform set_config('synchronous_commit', 'on', true);
  perform eventflow.fence(executor_id);
  perform eventflow.number_flush(executor_id, lane_number, flush_n, flush_nonce);
  -- A user's transaction may have an older snapshot, which has its own lane's predecessor to go by.
  if acknowledged is not null and current_setting('transaction_isolation') = 'read committed' then
    perform eventflow.check_acknowledged(executor_id, acknowledged);
  end if;
  if cardinality(claim_ids) > 0 then
    perform eventflow.hold_claims(executor_id, claim_ids, claim_epochs);
  end if;
end $$;

-- R8. Whoever let go of a workflow records nothing more for it, alive as he may be.
create function eventflow.hold_workflow(executor_id bigint, workflow_id text) returns void
language plpgsql volatile as $$
begin
  perform 1 from eventflow.workflows where id = workflow_id and executor = executor_id for share;
  if not found then
    raise exception 'workflow % is not held by executor %', workflow_id, executor_id using errcode = 'EF008';
  end if;
end $$;

-- Rows written against rows sent: raises where they differ (R4).
create function eventflow.expect(written bigint, sent bigint) returns void language plpgsql as $$
begin
  if written <> sent then
    raise exception 'wrote % rows where % were sent', written, sent using errcode = 'EF004';
  end if;
end $$;

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

-- Where a partition goes on after an incident, once: what it skips is accepted as read and stands in the incident; a log that
-- was truncated goes on as the next generation, under another claim, and this one ends. By the owner, before it reads.
create function eventflow.go_on(
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

-- A reprocessing ends when all of it is accepted, and nothing of that is under way; or when its topic is another one. Whether it has;
-- by any of those that read it.
create function eventflow.end_reprocessing(executor_id bigint, number bigint) returns boolean language plpgsql volatile as $$
declare done boolean;
begin
  perform eventflow.fence(executor_id);
  if exists (select from eventflow.reprocessings r join eventflow.sources s on s.id = r.source where r.id = number and s.superseded) then
    update eventflow.reprocessings r set ended_at = now(), stopped_by = 'eventflow, as the topic was recreated'
     where r.id = number and r.ended_at is null;
    return true;
  end if;
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
     where s.topic = topic_name and s.cluster_id = cluster and not s.superseded and not c.released and c.reprocessing is null
    on conflict (kind, subject) where settled_at is null
    do update set at = now(), times = incidents.times + 1, detail = excluded.detail;
  update eventflow.sources s set superseded = true where s.topic = topic_name and s.cluster_id = cluster;
  return query insert into eventflow.sources as s (topic, incarnation, cluster_id, topic_id, begins)
    select topic_name, coalesce(max(o.incarnation), 0) + 1, cluster, topic_uuid, chosen
      from eventflow.sources o where o.topic = topic_name
    returning s.id, s.incarnation, false, s.begins;
end $$;

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

-- A clean end: the identity closes, then rows that are still held are free for others at once, charged to nobody (R8, R13).
create function eventflow.die(executor_id bigint) returns void language plpgsql volatile as $$
begin
  perform 1 from eventflow.executors where id = executor_id and alive for update;
  if not found then return; end if;
  update eventflow.executors set alive = false, died_at = now() where id = executor_id;
  update eventflow.workflows set executor = null, status = case when status = 'running' then 'queued' else status end
   where executor = executor_id and status in ('queued', 'running', 'waiting');
end $$;

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

-- Workflows that are held run again, by whoever serves them or from the end of their queue's line: what ended them is forgotten,
-- and from the checkpoint that did on what they recorded is dropped, the step's former attempts too; messages received there are
-- to be received again. In line only its parent's time runs, where it has one; its own begins when it does.
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
  delete from eventflow.stream_items i where i.workflow_id = any(held);
  delete from eventflow.watches v where v.workflow_id = any(held);
  update eventflow.messages m set consumed = false, position = null where m.workflow_id = any(held) and m.consumed;
  update eventflow.workflows w set steps = null where w.id = any(held) and w.steps is not null;
  return eventflow.run_again(held);
end $$;

-- A new workflow with the same name and arguments, and with what another one recorded before a position: of none, from the
-- beginning; through its queue's line, where it has one (EF011: its id is taken; EF012: nothing was recorded at that position).
create function eventflow.fork(source_id text, fork_id text, from_position text, by_whom text) returns void
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
create function eventflow.forget(ids text[], by_whom text) returns bigint language plpgsql volatile as $$
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
  delete from eventflow.traces t where t.workflow_id = any(held);
  insert into eventflow.signals (workflow_id) select distinct v.workflow_id from eventflow.watches v where v.target = any(held);
  delete from eventflow.workflows w where w.id = any(held);
  return cardinality(held);
end $$;

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

-- R17. The relay's fence: SHARE, so that the claim's UPDATE waits for every transaction of the former holder.
create function eventflow.fence_relay(held bigint) returns void language plpgsql volatile as $$
begin
  perform set_config('plan_cache_mode', 'force_custom_plan', true);
  perform set_config('synchronous_commit', 'on', true);
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'the relay reads committed rows, statement by statement' using errcode = '25001';
  end if;
  perform 1 from eventflow.relay r where r.epoch = held for share;
  if not found then
    raise exception 'the relay of epoch % has been taken over', held using errcode = 'EF001';
  end if;
end $$;

-- A new epoch, for a living executor: of the relay as it was seen, or, where nothing is said, of one's own.
create function eventflow.claim_relay(executor_id bigint, seen bigint) returns bigint language plpgsql volatile as $$
declare claimed bigint;
begin
  perform eventflow.fence(executor_id);
  perform set_config('synchronous_commit', 'on', true);
  update eventflow.relay r set epoch = r.epoch + 1, holder = executor_id
   where case when seen is null then r.holder = executor_id else r.epoch = seen end
  returning r.epoch into claimed;
  if claimed is null then
    raise exception 'the relay has another holder' using errcode = 'EF001';
  end if;
  return claimed;
end $$;

-- The highest batch is known to be out: its events go, all of them or, where they have gone, none. EF003: the ledger has another
-- highest batch than its relay.
create function eventflow.settle_batch(held bigint, last bigint) returns void language plpgsql volatile as $$
declare
  b    record;
  gone int;
  more int;
begin
  perform eventflow.fence_relay(held);
  select o.n, o.ids, o.events into b from eventflow.outbox_batches o order by o.n desc limit 1;
  if b.n is distinct from last then
    raise exception 'the ledger''s last batch is %, its relay''s is %', b.n, last using errcode = 'EF003';
  end if;
  delete from eventflow.outbox o using unnest(b.ids) r where o.id >= lower(r) and o.id < upper(r);
  get diagnostics gone = row_count;
  if gone < b.events then
    delete from eventflow.undelivered u using unnest(b.ids) r where u.id >= lower(r) and u.id < upper(r);
    get diagnostics more = row_count;
    gone := gone + more;
  end if;
  if gone not in (0, b.events) then
    raise exception 'batch % has % events of %', b.n, gone, b.events using errcode = 'EF004';
  end if;
  delete from eventflow.outbox_batches o
   where o.n = last - 100
     and (select count(*) from (select from eventflow.outbox_batches y where y.slot = o.slot and y.n > o.n limit 2) newer) = 2;
end $$;

-- The highest batch is known not to be out, nor ever to be: it was none.
create function eventflow.void_batch(held bigint, last bigint) returns void language plpgsql volatile as $$
begin
  perform eventflow.fence_relay(held);
  delete from eventflow.outbox_batches o
   where o.n = last and o.n = (select max(y.n) from eventflow.outbox_batches y);
  if not found then
    raise exception 'batch % is not the ledger''s last one', last using errcode = 'EF003';
  end if;
end $$;

-- For any language: publish an event with the caller's own transaction; its id, which is in the header `eventflow-id`.
create function eventflow.publish_bytes(topic text, key bytea, value bytea, headers jsonb default '{}') returns text
language plpgsql volatile as $$
declare
  added bigint;
  named text;
begin
  if topic is null or topic !~ '^[A-Za-z0-9._-]{1,249}$' or topic in ('.', '..') then
    raise exception 'not a topic''s name: ''%''', topic using errcode = '22023';
  end if;
  if jsonb_typeof(coalesce(headers, '{}')) <> 'object'
     or exists (select from jsonb_each(coalesce(headers, '{}')) h where jsonb_typeof(h.value) not in ('string', 'null')) then
    raise exception 'headers is a JSON object of texts' using errcode = '22023';
  end if;
  select h.name into named from jsonb_object_keys(coalesce(headers, '{}')) h (name) where h.name like 'eventflow-%' limit 1;
  if found then
    raise exception 'a header''s name that begins with eventflow- is eventflow''s own: ''%''', named using errcode = '22023';
  end if;
  insert into eventflow.outbox (topic, key, value, headers)
  values (topic, key, value, (
    select json_agg(json_build_array(h.key, translate(encode(convert_to(h.value, 'UTF8'), 'base64'), E'\n', '')))
      from jsonb_each_text(headers) h))
  returning id into added;
  return (select id from eventflow.ledger) || '/' || added;
end $$;

-- The same with a text for a key and a JSON value; of SQL's null: a tombstone.
create function eventflow.publish(topic text, key text, value jsonb, headers jsonb default '{}') returns text
language sql volatile as $$
  select eventflow.publish_bytes(topic, convert_to(key, 'UTF8'), convert_to(value::text, 'UTF8'), headers)
$$;
