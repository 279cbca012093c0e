"""Durable tasks on Cloudflare Workflows."""
