"""The HTTP interface as values: a request in, a response out, no server and no JavaScript."""
