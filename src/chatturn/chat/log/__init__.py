"""A turn's log: numbered, stored, read back and followed."""
