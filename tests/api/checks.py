"""A valid request is taken, unless what is stored decides otherwise: then its refusal says so."""

import json
from typing import Any

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.specs.openapi.checks import positive_data_acceptance

_BY_WHAT_IS_STORED = {"input_mismatch", "idempotency_key_reused", "step_divergence"}
"""Codes of refusals by a turn that has begun with another message."""

_OF_THIS_SERVICE = {"after", "parameters.tools", "rating", "tools"}
"""Members that only this service can make, or that must fit its product, what it has stored, or another member."""


_INVALID = {"invalid_field", "unsupported_parameter"}

_BEYOND_A_SCHEMA = b"has two of the same name"
"""What the service says of a list whose members must differ in one of their own members."""


@schemathesis.check
def valid_requests_are_taken(ctx: Any, response: Any, case: Any) -> bool | None:
    """As Schemathesis's own check, but for those refusals."""
    try:
        return positive_data_acceptance(ctx, response, case)
    except RejectedPositiveData:
        code, field = _refusal(response)
        if code in _BY_WHAT_IS_STORED or (code in _INVALID and field in _OF_THIS_SERVICE):
            return None
        if _BEYOND_A_SCHEMA in response.content:
            return None
        raise


def _refusal(response: Any) -> tuple[str | None, str | None]:
    """Return the code and the field of a refusal, in whichever form it is told."""
    if "x-error-code" in response.headers:
        return response.headers["x-error-code"][0], None
    try:
        members = json.loads(response.content)
    except ValueError:
        return None, None
    error = members.get("error", members)
    return error.get("code"), error.get("field") or error.get("param")
