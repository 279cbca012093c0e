"""The error tree is what its own drawing says, and nobody can mistake one code for another."""

import re

from chatturn import errors
from chatturn.errors import ChatTurnError, RequestError, error_classes

# Lines of the drawing: "  + Forbidden      403 forbidden (r): …".  Classes that gather others have no code.
_LINE = re.compile(
    r"^(?P<indent> *)[*x+-] (?P<name>\w+) {2,}(?:(?P<status>\d{3}) (?P<code>\w+)(?P<retryable> \(r\))?)?"
)

# One code, several classes: where a client is to see no difference.
SHARED_CODES = {
    "not_found": {"NotFound", "RunNotFound"},
    "malformed_request": {"MalformedRequest", "RequestError"},
    "validation": {"AgentEvalError", "InvalidRuntimeEvent", "SessionMismatchError", "ValidationError"},
}
# Classes that gather others and are never raised themselves: the drawing gives no code for them.
GATHERING = {"AgentEvalError", "RequestError", "DurableRunError"}


def drawn() -> dict[str, re.Match[str]]:
    lines = (_LINE.match(line) for line in (errors.__doc__ or "").splitlines())
    return {line["name"]: line for line in lines if line}


def test_the_drawing_shows_every_class_and_no_other() -> None:
    """Whoever reads the module's docstring has read the tree."""
    assert {cls.__name__ for cls in error_classes()} == set(drawn())


def test_the_drawing_tells_each_class_s_status_code_and_retryability() -> None:
    """What stands beside a class is what the class says."""
    for cls in error_classes():
        line = drawn()[cls.__name__]
        if cls.__name__ in GATHERING:
            assert line["code"] is None
            continue
        expected = (line["status"], line["code"], line["retryable"] is not None)
        assert expected == (str(cls.status), cls.code, cls.retryable), cls


def test_the_drawing_hangs_each_class_under_its_parent() -> None:
    """Indentation is inheritance."""
    path: list[tuple[int, str]] = []
    for name, line in drawn().items():
        indent = len(line["indent"])
        path = [(width, parent) for width, parent in path if width < indent]
        cls = getattr(errors, name)
        expected = path[-1][1] if path else "Exception"
        assert expected == cls.__bases__[0].__name__
        path.append((indent, name))


def test_all_names_every_public_name_in_order() -> None:
    """`__all__` is complete and sorted."""
    public = {cls.__name__ for cls in error_classes()} | {"error_class", "error_classes"}

    assert sorted(public) == errors.__all__


def test_codes_are_unique_but_for_those_that_mean_to_be_alike() -> None:
    """A program that switches on the code always knows what happened."""
    by_code: dict[str, set[str]] = {}
    for cls in error_classes():
        if cls.__name__ != "DurableRunError":
            by_code.setdefault(cls.code, set()).add(cls.__name__)

    assert {code: names for code, names in by_code.items() if len(names) > 1} == SHARED_CODES


def test_every_class_tells_clients_more_than_that_something_went_wrong() -> None:
    """The public sentence is the class's or its family's, and ends like a sentence."""
    for cls in error_classes()[1:]:
        assert cls.public != ChatTurnError.public, cls
        assert re.fullmatch(r"[A-Z][^\n{}]+\.", cls.public), cls


def test_what_hides_another_tenant_s_run_looks_like_a_missing_route() -> None:
    """Nobody can tell somebody else's run from none."""
    assert errors.NotFound.public == errors.RunNotFound.public
    assert errors.NotFound.status == errors.RunNotFound.status


def test_a_request_error_never_asks_to_be_sent_again_unchanged() -> None:
    """The caller's mistakes are 4xx and not retryable."""
    for cls in error_classes():
        if issubclass(cls, RequestError):
            assert (400 <= cls.status < 500, cls.retryable) == (True, False), cls


def test_one_except_clause_catches_everything() -> None:
    """The tree has one root."""
    assert all(issubclass(cls, ChatTurnError) for cls in error_classes())
