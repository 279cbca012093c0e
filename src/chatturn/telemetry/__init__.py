"""What operators learn of turns: log lines, spans, metrics."""
