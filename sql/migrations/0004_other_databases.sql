-- migration: 4 other_databases
-- oldest_code: 1
-- Who this ledger is, in databases that keep something for it: a row, with a random id.
create table eventflow.ledger (
  id  uuid not null default gen_random_uuid(),
  one boolean primary key default true check (one)
);
insert into eventflow.ledger default values;
