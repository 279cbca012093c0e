"""Durable runs: leases, steps, and a streaming turn as one step; nothing here knows chat."""
