"""How fast, beside what one would otherwise take: pgbench, messages that do nothing, and other task queues."""
