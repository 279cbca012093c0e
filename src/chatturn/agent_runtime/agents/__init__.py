"""Agents in sandboxes: their profiles, whom a message is for, and a turn with one."""
