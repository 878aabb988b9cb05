-- A small batch of succeeded workflows past their time, and of dead letters past theirs, with all that is theirs; others stay.
-- Walks the table in physical order, from a row on and up to a page: an index would be paid by every insert (ADR 2).
-- Locks what it deletes and skips what something else holds; a second run over the same pages takes what is left there.
with old as materialized (
  select ctid, id from eventflow.workflows
   where ctid > %(after)b::text::tid and ctid < format('(%%s,0)', %(page)b::bigint)::tid
     and ((status = 'succeeded' and finished_at < now() - %(keep)b::interval)
          or (status in ('failed', 'cancelled') and claim is not null and finished_at < now() - %(keep_dead)b::interval))
   limit %(batch)b::int for update skip locked
), checkpoints as (
  delete from eventflow.checkpoints where workflow_id = any (array(select id from old)) returning 1
), messages as (
  delete from eventflow.messages where workflow_id = any (array(select id from old))
), events as (
  delete from eventflow.events where workflow_id = any (array(select id from old))
), stream_items as (
  delete from eventflow.stream_items where workflow_id = any (array(select id from old))
), failures as (
  delete from eventflow.failures where workflow_id = any (array(select id from old))
), edits as (
  delete from eventflow.edits where workflow_id = any (array(select id from old))
), requests as (
  delete from eventflow.requests where workflow_id = any (array(select id from old))
), traces as (
  delete from eventflow.traces where workflow_id = any (array(select id from old))
), workflows as (
  delete from eventflow.workflows where ctid = any (array(select ctid from old)) returning 1
)
select (select count(*) from workflows), (select count(*) from checkpoints), (select max(ctid)::text from old)
