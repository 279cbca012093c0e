"""One turn, from its claim to its terminal line."""
