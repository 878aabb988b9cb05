-- The migrations that this ledger has, with the oldest code that each admits. A row each: no index needed.
select version, oldest_code from eventflow.migrations
