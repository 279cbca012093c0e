"""
The vocabulary of the documents' runtime, for tools that speak it.

`mapping` puts a turn's log into it; `chatturn.telemetry.sanitize`, `.collectors` and `.bridge`, `chatturn.wire.runtime`
and `chatturn.ledger` take its events.  Pure: no I/O; whoever needs a clock is given one.
"""
