"""
Failures on record: an exception as JSON, and the same exception again on a later attempt.

A task may catch what a step raises and go on.  Then every later attempt must raise the same at this step, or the task
would take another path than the one on record.  So a caught failure is final, and the exception is made again from its
class's name, its `args`, its attributes and its cause.  An exception that cannot be made again exactly, with all its
types, leaves the step as `StepFailed` from the first attempt on, so the task sees the same on every attempt.  A
cause that cannot be made again is replaced by a `StepFailed`, too.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, NoReturn

from chatturn.database.api import NOW, Statement
from chatturn.durable.records import StepError, StepRecord, StepStatus
from chatturn.durable.sql.runs import FAIL_FOR_GOOD
from chatturn.durable.steps import words_of
from chatturn.durable.store import Begin
from chatturn.errors import ChatTurnError, StepFailed
from chatturn.jsontext.stored import json_text

__all__ = [
    "CANCELLED",
    "error_from_json",
    "error_of",
    "error_text",
    "lasting",
    "mark_final",
    "raise_again",
    "started_before",
]

CANCELLED: Final = StepError(message="it was cancelled", code="cancelled")
"""The error of a step that the task itself cancelled, as `asyncio.timeout` and a failing `asyncio.TaskGroup` do."""

_ERROR_CHARACTERS: Final = 2_000
_EXCEPTION_CHARACTERS: Final = 8_000

_OF_EVERY_OBJECT: Final = frozenset({"__dict__", "__weakref__"})


def lasting(error: Exception, intent: str, run_id: str) -> Exception:
    """
    Return *error* if a later attempt can make it again, else a `StepFailed` that says the same.

    A cause that cannot be made again is replaced by a `StepFailed`; this changes *error* itself.
    """
    if _description(error) is not None:
        return error
    cause, error.__cause__ = error.__cause__, None
    if cause is None or _description(error) is None:
        return _failed(error, intent, run_id)
    error.__cause__ = _failed(cause, intent, run_id)
    error.__cause__.__context__ = cause  # for the traceback
    return error


def _failed(error: BaseException, intent: str, run_id: str) -> StepFailed:
    words = words_of(error)[:_ERROR_CHARACTERS].encode("utf-8", "replace").decode()
    return StepFailed(f"step {intent!r} failed: {words}", run_id=run_id)


def error_of(error: Exception, raised: Exception) -> StepError:
    """Return the record of a failed step: *error* in words, and *raised*, the exception that left the step, as JSON."""
    code = error.code if isinstance(error, ChatTurnError) else None
    return StepError(message=words_of(error), code=code, exception=_description(raised))


def raise_again(step: StepRecord) -> NoReturn:
    """
    Raise the error of a step on record.

    Raises:
        StepFailed: The error's class no longer exists, or the record holds only words.
        Exception: The same error as on the first attempt.
    """
    error = step.error or StepError(message="it left no words")
    exception = None if error.exception is None else _made_again(error.exception)
    if exception is None:
        exception = StepFailed(f"step {step.intent!r} failed: {error.message}", run_id=step.run_id)
    raise exception


def mark_final(begin: Begin, attempts: int, elapsed_ms: int, error: StepError) -> Statement:
    """Return the statement that records a failure as final; the store puts the fence's parameters before it."""
    what = (begin.step_index, begin.intent, begin.kind, begin.input_hash, StepStatus.FAILED, attempts)
    return Statement(FAIL_FOR_GOOD, (*what, None, error_text(error, final=True), NOW, started_before(elapsed_ms)))


def started_before(elapsed_ms: int) -> str:
    """Return the SQLite time modifier for *elapsed_ms* ago."""
    return f"-{elapsed_ms / 1000:.3f} seconds"


def error_text(error: StepError, *, final: bool = False) -> str:
    """Encode an error for its column."""
    message = error.message[:_ERROR_CHARACTERS].encode("utf-8", "replace").decode()
    members = {"message": message, "code": error.code, "exception": error.exception, "final": final or None}
    return json_text({name: value for name, value in members.items() if value is not None}, "the error")


def error_from_json(members: Mapping[str, Any]) -> StepError:
    """Read an error from its column; agent-runtime's have fewer members."""
    return StepError(
        message=members.get("message", ""),
        code=members.get("code"),
        exception=members.get("exception"),
        final=members.get("final") is True,
    )


def _description(error: BaseException) -> dict[str, Any] | None:
    """Return the JSON from which an exception can be made again; None if it cannot be made again."""
    try:
        described = _described(error)
        text = json_text(described, "the exception")
        again = _made_again(json.loads(text)) if len(text) <= _EXCEPTION_CHARACTERS else None
        same = again is not None and str(again) == str(error) and _is_same(_state(again), _state(error))
    except Exception:  # noqa: BLE001 - whatever a foreign exception does when it is asked
        return None
    return described if same else None


def _described(error: BaseException) -> dict[str, Any]:
    cause = error.__cause__
    return {
        "module": type(error).__module__,
        "name": type(error).__qualname__,
        "args": list(error.args),
        "attributes": dict(vars(error)),
        "members": _members(error),
        **({} if cause is None else {"cause": _described(cause)}),
    }


def _made_again(described: Mapping[str, Any]) -> Exception | None:
    """Make an exception without calling its constructor, which may need other arguments than those in `args`."""
    try:
        found: Any = sys.modules[described["module"]]  # a database row must not cause an import
        for name in described["name"].split("."):
            found = getattr(found, name)
        if not (isinstance(found, type) and issubclass(found, Exception)):
            return None
        again = found.__new__(found, *described["args"])
        vars(again).update(described["attributes"])
        kept = _members(again)
        for name, value in described.get("members", {}).items():
            if name not in kept or not _is_same(kept[name], value):
                setattr(again, name, value)
        if "cause" in described:
            again.__cause__ = _made_again(described["cause"])
    except Exception:  # noqa: BLE001 - the code may have changed since
        return None
    return again


def _members(error: BaseException) -> dict[str, Any]:
    """Return what an exception keeps outside ``__dict__``: its ``__slots__``, and C fields such as `OSError`'s."""
    found: dict[str, Any] = {}
    for cls in type(error).__mro__:
        if cls is BaseException:
            break
        for name, member in vars(cls).items():
            if isinstance(member, MemberDescriptorType | GetSetDescriptorType) and name not in _OF_EVERY_OBJECT:
                with suppress(AttributeError):  # the slot was never set
                    found[name] = member.__get__(error)
    return found


def _state(error: BaseException | None) -> tuple[Any, ...]:
    """Return all that a task can see of an exception and of its causes."""
    if error is None:
        return ()
    return (type(error), error.args, dict(vars(error)), _members(error), _state(error.__cause__))


def _is_same(one: Any, other: Any) -> bool:
    """Compare values and their types at every level: 1 is not True, a tuple no list, an enum's member not its text."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return _is_same(sorted(one.items()), sorted(other.items()))
    return bool(one == other)
