"""Tasks: the control loop, the stream, their steps, their sessions and their backends."""
