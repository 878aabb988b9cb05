-- Which claims there are that messages may still be accepted under: what the scopes of keys are named by.
select id from eventflow.claims where not ended
