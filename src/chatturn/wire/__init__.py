"""Projections of the log: the same lines for clients that speak another format.  Pure functions of its text."""
