"""What is told of turns to operators: log lines, spans, metrics."""
