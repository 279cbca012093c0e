"""What agent-runtime talks about: tasks, what they must know, events, their JSON, and what no text may say."""
