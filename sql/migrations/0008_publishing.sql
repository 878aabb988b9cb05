-- migration: 8 publishing
-- oldest_code: 1
-- Events that are published: what waits, what is on its way, and what Kafka refused.

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
