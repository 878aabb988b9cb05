-- The topics that have been read, as they are now.
select distinct topic from eventflow.sources where not superseded order by topic
