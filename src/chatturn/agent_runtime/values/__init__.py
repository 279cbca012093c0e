"""The values of agent-runtime: tasks, required knowledge, events, their JSON, and credentials no text may quote."""
