-- Let those dead letters go whose turn it is in the redeliveries under way, of handlers served here. Locks each redelivery, skipping
-- what a peer sees to, then the rows of its letters; a second run lets the next ones go, at the same rate.
select gone, next_in from eventflow.redeliver_due(%(application)b::text, %(names)b::text[], %(limit)b::bigint)
