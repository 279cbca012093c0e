"""What Schemathesis is told about this service."""

from tests.api import checks, formats

__all__ = ["checks", "formats"]
