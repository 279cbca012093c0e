"""Chat turns on top of durable ones: lines, hooks, the log, the outbox."""
