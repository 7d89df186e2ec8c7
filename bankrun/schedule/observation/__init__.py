"""What a step did, as Postgres tells it: locks, the write-ahead log, plans; and which steps depend on each other."""
