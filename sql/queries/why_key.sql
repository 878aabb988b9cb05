-- What is unfinished or a dead letter of a key: the first of each scope and of each queue's line, in these scopes or with this key
-- as a message's or a queue's. Reads all that is unfinished, and all dead letters.
select id from (
  select distinct on (coalesce(w.scope, w.queue || ' ' || w.queue_key || ' ' || (w.executor = 0)::text, w.id)) w.id, w.created_at
    from eventflow.workflows w
   where (w.status in ('queued', 'running', 'waiting', 'parked') or w.claim is not null and w.status = 'failed')
     and (w.scope = any(%(scopes)b::text[]) or w.key = %(key)b::bytea or w.queue_key = %(text)b::text)
   order by coalesce(w.scope, w.queue || ' ' || w.queue_key || ' ' || (w.executor = 0)::text, w.id),
            w.status = 'failed', w."offset", w.placed, w.place, w.created_at
) heads order by created_at, id limit 100
