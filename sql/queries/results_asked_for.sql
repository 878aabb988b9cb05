-- Of these results in another database, those that somebody may still ask for, by their place in the list: the ledger has a
-- ticket for the position, and no result. By the primary key of checkpoints.
select r.place from unnest(%(workflow_id)b::text[], %(position)b::text[]) with ordinality as r (workflow_id, position, place)
 where exists (select from eventflow.checkpoints c where c.workflow_id = r.workflow_id and c.position = r.position || '~t1')
   and not exists (select from eventflow.checkpoints c where c.workflow_id = r.workflow_id and c.position = r.position)
