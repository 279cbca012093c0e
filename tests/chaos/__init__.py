"""Real processes, killed and stopped at random moments of concurrent turns, over a database and a model that fail."""
