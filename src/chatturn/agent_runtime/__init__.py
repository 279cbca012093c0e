"""
The vocabulary of the TypeScript package agent-runtime, for tools that speak it: a wing that nothing else needs.

`mapping` puts a turn's log into it; `sanitize`, `collectors`, `trace_bridge`, `server_sent_events` and `run_ledger`
take its events.  Pure: no I/O; whoever needs a clock is given one.
"""
