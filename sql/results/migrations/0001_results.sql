-- migration: 1 results
-- oldest_code: 1
-- One row per applied migration, as in the ledger.
create table eventflow_results.migrations (
  version     int primary key,
  name        text not null,
  oldest_code int not null,
  applied_at  timestamptz not null default now()
);

create table eventflow_results.results (
  finished_at timestamptz not null default clock_timestamp(),
  ticket      uuid not null,              -- random, and rising with the time at which it was issued
  ledger      uuid not null,              -- whose pruner deletes it
  seconds     real not null,
  attempts    int not null,
  workflow_id text collate "C" not null,  -- a fork has its source's tickets: they are others
  position    text collate "C" not null,
  name        text collate "C" not null,
  output      text,                       -- JSON; null: void, nothing was and nothing will be done under this ticket
  riders      text,                       -- JSON: what the ledger writes with the checkpoint: messages, events, ...
  primary key (ticket, workflow_id)
);

-- The last statement of a transaction. Raises EF001 where its process has not heard from the ledger for longer than rows are
-- sure to be kept, 23505 where somebody has settled the ticket.
create function eventflow_results.record(
  ticket uuid, ledger uuid, workflow_id text, "position" text, name text, output text, riders text, attempts int, seconds real,
  heard timestamptz
) returns void language plpgsql volatile as $$
begin
  perform set_config('synchronous_commit', 'on', true);  -- else a crash here loses what the ledger knows
  if clock_timestamp() - heard > interval '12 hours' then
    raise exception 'this process last heard from its ledger at %, here it is %: it was frozen, or the clocks differ by hours',
      heard, clock_timestamp() using errcode = 'EF001';
  end if;
  insert into eventflow_results.results (ticket, ledger, seconds, attempts, workflow_id, position, name, output, riders)
  values (ticket, ledger, seconds, attempts, workflow_id, "position", name, output, riders);
end $$;
