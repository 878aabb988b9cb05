-- migration: 13 recreated
-- oldest_code: 12
-- A reprocessing ends with its topic.

-- A reprocessing ends when all of it is accepted, and nothing of that is under way; or when its topic is another one. Whether it has;
-- by any of those that read it.
create or replace function eventflow.end_reprocessing(executor_id bigint, number bigint) returns boolean language plpgsql volatile as $$
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
