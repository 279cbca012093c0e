"""Agents in sandboxes: their profiles, the choice of an agent for a message, and one turn with an agent."""
