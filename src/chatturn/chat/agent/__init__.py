"""The loop of a turn in which the model uses tools."""
