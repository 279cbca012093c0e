"""
Telemetry on its way out: spans, metrics and log records as OTLP over HTTP, encoded as JSON.

::

    TurnTrace ──▶ spans of an attempt that is kept ─┐
        └──▶ what it consumed ──▶ Metrics ──────────┼──▶ Outbound ──▶ Sender ──▶ {endpoint}/v1/…
    log ──▶ records ────────────────────────────────┘    bounded       under a deadline, after the response

Nothing of this is imported unless an endpoint is set.
"""
