-- The source that a topic is now: (cluster id, topic id) -> incarnation, inserted once, numbered per topic (R16).
-- Locks: an advisory lock per topic; a newer topic id of the same cluster marks the older ones superseded.
-- A second run finds the row.
select id, incarnation, foreign_cluster from eventflow.register_source(
  %(topic)b::text, %(cluster_id)b::text, %(topic_id)b::text
)
