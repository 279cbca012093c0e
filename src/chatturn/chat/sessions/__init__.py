"""Sessions as people's data: listed, named, rated, exported and deleted."""
