"""The database seam, its schema and its drivers."""
