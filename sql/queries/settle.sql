-- A person's choice for an incident. Locks its row; a second run is refused: EF012, as for one that there is not.
select eventflow.settle(%(incident)b::bigint, %(choice)b::text, %(who)b::text)
