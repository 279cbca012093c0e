"""What one user can do to an isolate of the real workerd, and what others notice of it: `make attack`."""
