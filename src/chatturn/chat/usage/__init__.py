"""What the model calls of turns consume, and what that adds up to."""
