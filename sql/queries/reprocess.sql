-- A topic's partitions are run again as another generation of a group (R16). Locks the source FOR SHARE, then the group's claims on it,
-- for which it waits until no open flush holds one, for a while: EF009. A second run is refused: EF009, EF012.
select eventflow.reprocess(
  %(who)b::text, %(group)b::text, %(source)b::bigint, %(partitions)b::int[], %(firsts)b::bigint[], %(rate)b::float8, %(instead)b::boolean
)
