"""The project's Worker, which prints how many turns a sweep has handed out to each of its invocations."""

import json
from typing import Any

from workers import Request

from entry import Default
from entry import SweepPart as _SweepPart

__all__ = ["Default", "SweepPart"]


class SweepPart(_SweepPart):
    """The project's, which says that it was called."""

    async def fetch(self, request: Request) -> Any:
        """Go on with turns."""
        named = json.loads(await request.js_object.clone().text())
        response = await super().fetch(request)
        print(f"a part of {len(named)} turns")
        return response
