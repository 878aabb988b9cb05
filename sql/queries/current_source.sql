-- What a topic of this name is now, as far as anybody has read it. By the unique key of sources.
select id, incarnation, cluster_id, topic_id from eventflow.sources where topic = %(topic)b::text and not superseded
 order by incarnation desc limit 1
