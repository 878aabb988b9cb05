-- migration: 12 pauses
-- oldest_code: 12
-- People pause consumers; code before this would read on.

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
