"""Tasks: the loop, the stream, their steps, their sessions, and who answers them."""
