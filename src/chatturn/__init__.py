"""Durable chat turns over one SQL database: claim, stream, finish, replay."""
