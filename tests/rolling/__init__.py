"""An earlier version's code and this one's serve one database at the same time, under kills."""
