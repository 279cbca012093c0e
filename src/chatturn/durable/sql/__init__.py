"""The SQL of durable runs."""
