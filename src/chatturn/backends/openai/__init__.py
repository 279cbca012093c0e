"""Backends that speak the chat completions API."""
