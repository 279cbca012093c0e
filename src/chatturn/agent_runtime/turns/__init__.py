"""Chat turns under agent-runtime's names, a turn's log as agent-runtime's events, and the interface of D1."""
