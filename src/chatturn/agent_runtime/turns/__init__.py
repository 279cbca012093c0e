"""Chat turns under the names of agent-runtime, their log as its events, and the interface of D1."""
