"""What others see of a stream or a run: sanitized events, collectors, traces, server-sent events, the run ledger."""
