"""The model's side: what answers a turn."""
