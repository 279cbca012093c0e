"""What a product writes: hooks and tools; and the hook calls that must still happen."""
