"""What of a stream or a run is shown to others: sanitized, collected, traced, sent, added up."""
