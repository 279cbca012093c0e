"""
Projections of a turn's log: its lines in the formats of other clients.  Each is a pure function of the log's text.

A format is a class here that implements `chatturn.http.projected.Projection`.  The module of the same name in
`chatturn.http` reads the format's requests, and `chatturn.http.routes` has its routes.
"""
