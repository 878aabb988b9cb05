-- Signals to workflows that did not sleep when they came, and do not now: they looked for themselves.
-- Locks what it deletes; a second run finds what has come since.
delete from eventflow.signals s
 where s.at < now() - interval '1 minute'
   and not exists (select from eventflow.workflows w where w.id = s.workflow_id and w.status = 'waiting')
