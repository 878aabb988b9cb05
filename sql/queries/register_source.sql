-- The source that a topic is now: (cluster id, topic id) -> incarnation, inserted once, numbered per topic (R16).
-- Locks: an advisory lock per topic; a newer topic id of the same cluster marks the older ones superseded, and so does one of
-- another cluster, once a person or a policy has chosen that. A second run finds the row.
select id, incarnation, foreign_cluster, begins from eventflow.register_source(
  %(topic)b::text, %(cluster_id)b::text, %(topic_id)b::text, %(policy)b::text
)
