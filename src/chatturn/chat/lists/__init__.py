"""Lists for people."""
