"""
Projections of the log: the same lines for clients that speak another format.  Pure functions of its text.

A format is a class here that keeps to `chatturn.http.projected.Projection`.  Its requests are read by the module of the
same name in `chatturn.http`, and its routes stand in `chatturn.http.routes`.
"""
