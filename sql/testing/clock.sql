-- The clock of a test harness: functions that come before the server's own on its connections' search path. It stands still until it
-- is moved; only `clock_timestamp` ticks, by a microsecond each time it is asked, so that what has an order by it keeps one.
create table eventflow.clock (at timestamptz not null);
create sequence eventflow.tick;
insert into eventflow.clock values (%(now)s);
create function eventflow.now() returns timestamptz language sql stable as 'select at from eventflow.clock';
create function eventflow.transaction_timestamp() returns timestamptz language sql stable as 'select at from eventflow.clock';
create function eventflow.statement_timestamp() returns timestamptz language sql stable as 'select at from eventflow.clock';
create function eventflow.clock_timestamp() returns timestamptz language sql volatile as
  'select at + pg_catalog.nextval('' eventflow.tick'') * interval ''1 microsecond'' from eventflow.clock';
