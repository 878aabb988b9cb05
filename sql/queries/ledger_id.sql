-- Who this ledger is, in databases that keep something for it. One row.
select id from eventflow.ledger
