"""
Errors in what a model's API says: found wherever servers put them, and told apart by what can be done about them.

The words are for the operator's log; a client gets the code of the error class::

    the conversation is too long for the model -------> ContextOverflow         not worth another try
    the account has nothing left to spend ------------> QuotaExhausted          not worth another try
    the request is wrong, or may not be made ---------> BackendRejected         not worth another try
    anything else ------------------------------------> BackendReportedError    may pass
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chatturn.backends.openai.model_json import parse_frame
from chatturn.errors import (
    BackendError,
    BackendRejected,
    BackendReportedError,
    BackendTransportError,
    ContextOverflow,
    QuotaExhausted,
)

__all__ = [
    "MAX_DETAIL_BYTES",
    "PASSING_STATUSES",
    "Complaint",
    "complaint_in",
    "complaint_within",
    "refusal",
    "shortened",
]

MAX_DETAIL_BYTES: Final = 2_048

PASSING_STATUSES: Final = frozenset({408, 409, 425, 429, 498, 499, 500, 502, 503, 504, 507, *range(520, 528), 529, 530})
"""
Statuses of answers that another try may better: HTTP's own, those of Cloudflare in front of an API (520 to 527, 530),
Anthropic's 529, Groq's 498; 409 and 408 as OpenAI's own clients take them.
"""

_TOO_LONG: Final = re.compile(
    r"context_(?:length|window)|context_?size|model_context|context (?:length|window|size|limit)|max_(?:seq|model)_len"
    r"|maximum (?:context|sequence|prompt|input|model) (?:length|size)"
    r"|(?:input|prompt)(?: tokens)? (?:is )?too (?:long|large)"
    r"|(?:input|prompt) token (?:count|limit)|request_too_large|tokens_limit_reached|prompt 超长"
    r"|range of input length|max input (?:characters|tokens|length)|max message tokens"
    r"|`inputs`(?: tokens \+ `max_new_tokens`)? must (?:be|have)"
    r"|too many (?:input |prompt )?tokens(?! per|,? please wait)"
    r"|(?:input|prompt|request)(?: \w+){0,6} exceed(?:s|ed)? (?:\w+ ){0,5}(?:tokens?|context|length)\b"
    r"|maximum (?:allowed )?number of (?:input )?tokens|reduce the length|too large for model"
    r"|max_tokens must be at least 1, got -"
)
_TOO_LONG_CODE: Final = re.compile("context_(?:length|window)_exceeded|exceed_context_size")
_USED_UP_CODE: Final = re.compile(
    r"insufficient_quota|billing_(?:hard_)?limit|insufficient[_ ](?:balance|credit|fund)|credit_balance|arrearage"
    r"|exceeded_current_quota|payment_required|account_(?:suspended|deactivated)|quota_exhausted"
    r"|not_enough_(?:balance|credit|quota)|insufficient_user_quota|freetieronly|tokenstatusexhausted|key limit exceeded"
)
_USED_UP: Final = re.compile(
    r"exceeded your current quota|credit balance|out of credits?|(?:not enough|requires? more|no) credits?"
    r"|insufficient (?:account )?(?:balance|credit|fund|quota)|(?:spend|spending|billing|usage|monthly) (?:hard )?limit"
    r"|(?:not enough|credits? are|balance is|quota is) (?:balance|quota|depleted|insufficient|not enough|exhausted)"
    r"|used up your|free tier of (?:the|this) model has|api calls ?/ ?month|credit limit exceeded|included credits"
    r"|payment required|(?:plan and|check your) billing|overdue|account (?:is |has been )?suspended|top up|recharge"
    r"|欠费|余额不足|额度不足|额度已用尽|user quota:"
)
_COMES_BACK: Final = re.compile(r"(?:retry|try again) in [0-9]|retrydelay|per[- _]minute|per[- _]day|perminute|perday")
_PASSING: Final = re.compile(
    r"overload|too many requests|rate.?limit|try again|retry|temporar|unavailable|time.?out|timed out|capacity|busy"
    r"|loading|server.?error|internal|engine|upstream|connection|disconnect|crash|died|abort|exhausted"
)
_WRONG: Final = re.compile(
    r"invalid_(?:request|argument|api_key|prompt|parameter)|invalidparameter|bad_?request|authenticat|unauthor"
    r"|permission|forbidden|not[ _]?found|field required|unsupported|unprocessable|model_not|validation_error"
    r"|unexpected endpoint|data_?inspection|content_?(?:policy|filter|management)|policy_violation|responsibleai"
    r"|inappropriate content|moderation_"
)
_CLIENT_ERRORS: Final = range(400, 500)
_ERRORS: Final = range(400, 600)
_STATUSES: Final = range(100, 600)
# Names of members, in lower case and without what separates words.
_ERROR_NAMES: Final = ("error", "errors", "err", "fault", "exception")
_WORDS: Final = ("detail", "message", "msg", "errormsg", "errormessage", "errordescription", "statusmsg", "reason")
_CODES: Final = ("code", "status", "statuscode", "httpcode", "errorcode")
_ENVELOPES: Final = ("response", "result", "output", "data", "body")
_FAILED: Final = frozenset({"error", "exception", "failed", "failure"})


def shortened(text: bytes | str) -> str:
    """Return at most 2 KiB of *text*, in UTF-8: what an error's ``detail`` may hold."""
    body = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return body[:MAX_DETAIL_BYTES].decode("utf-8", "replace").rstrip("\ufffd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """
    An error as an API said it.

    Attributes:
        words: The whole error, as text.
        status: The HTTP status inside the error, as 429; 0 if it has none.
        is_bare: Whether the error is a mere sentence, without a code or a status.
    """

    words: str
    status: int = 0
    is_bare: bool = False

    def error(self, backend: str, *, instead_of_answer: bool = False) -> BackendError:
        """
        Return the error to raise for it.

        Args:
            backend: The backend's name.
            instead_of_answer: Whether it came without any answer.  A bare sentence is then a refusal of the request,
                unless its words name a failure that passes.
        """
        words = self.words.lower()
        if (refused := refusal(self.words, self.status, backend)) is not None:
            return refused
        wrong = self.status in _CLIENT_ERRORS and self.status not in PASSING_STATUSES
        if not self.status:
            wrong = bool(_WRONG.search(words)) or (instead_of_answer and self.is_bare)
            wrong = wrong and not _PASSING.search(words)
        detail = shortened(self.words)
        if wrong:
            return BackendRejected(
                "the API refused the request", backend=backend, upstream_status=self.status, detail=detail
            )
        return BackendReportedError("the API reported an error", backend=backend, detail=detail)


def refusal(words: str, status: int, backend: str, *, comes_back: bool = False) -> BackendTransportError | None:
    """
    Return the error for a refusal because of the account or the conversation, which no retry can help; else None.

    Args:
        words: What the API says.
        status: The response's HTTP status, or the one inside the error; 0 for none.
        backend: The backend's name.
        comes_back: Whether the response says when to retry: then the quota is used up only until that time.
    """
    lower, detail = words[:MAX_DETAIL_BYTES].lower(), shortened(words)
    limited = status == 429  # noqa: PLR2004 - Too Many Requests
    if (_TOO_LONG_CODE if limited else _TOO_LONG).search(lower):
        return ContextOverflow("too long for the model", backend=backend, upstream_status=status, detail=detail)
    used_up = status == 402 or _USED_UP_CODE.search(lower)  # noqa: PLR2004 - Payment Required
    if used_up or (_USED_UP.search(lower) and not comes_back and not _COMES_BACK.search(lower)):
        return QuotaExhausted("the quota is used up", backend=backend, upstream_status=status, detail=detail)
    return None


def complaint_in(message: Any) -> Complaint | None:
    """Return the error that *message*, one JSON value of an answer, is or contains; None if there is none."""
    if isinstance(message, list):
        return next(filter(None, map(complaint_in, message)), None)
    return next(_complaints(message), None) if isinstance(message, dict) else None


def complaint_within(text: str) -> Complaint | None:
    """Return the error that *text* is, which was read line by line; None if it is none, or no JSON."""
    try:
        return complaint_in(parse_frame(text))
    except ValueError:
        return None


def _complaints(message: Mapping[str, Any]) -> Iterator[Complaint]:
    members = _by_plain_names(message)
    if error := _error_among(members):
        yield _complaint(message, error)
    label = message.get("object") or message.get("type") or message.get("event")
    if str(label).lower() in _FAILED:
        yield _complaint(message, message)
    choices = message.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        yield from _in_choice(choice)
    for nested in ("base_resp", "x_groq"):  # MiniMax, where 0 is no error, and Groq
        inner = message.get(nested)
        if isinstance(inner, dict) and (inner.get("status_code") or "error" in inner):
            yield _complaint(message, inner.get("error", inner))
    if not choices and not _meant(message.get("usage")):
        yield from _instead_of_choices(message, members, label)


def _instead_of_choices(message: Mapping[str, Any], members: Mapping[str, Any], label: Any) -> Iterator[Complaint]:
    for name in _ENVELOPES:
        inner = members.get(name)
        if isinstance(inner, dict) and (error := _error_among(_by_plain_names(inner))):
            yield _complaint(message, error)
    has_words = any(isinstance(members.get(name), str | list | dict) and members[name] for name in _WORDS)
    is_other = isinstance(label, str) and "error" not in label.lower() and _status(message) not in _ERRORS
    has_failed = members.get("success") is False or str(members.get("status")).lower() in _FAILED
    if has_failed or (has_words and not is_other):
        yield _complaint(message, message)


def _by_plain_names(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of *message* by their names in lower case: ``ErrorMsg`` and ``error_msg`` are one."""
    return {str(name).lower().replace("_", "").replace("-", ""): value for name, value in message.items()}


def _error_among(members: Mapping[str, Any]) -> Any:
    return next(filter(None, (_meant(members.get(name)) for name in _ERROR_NAMES)), None)


def _in_choice(choice: Any) -> Iterator[Complaint]:
    if isinstance(choice, dict):
        for place in (choice, choice.get("delta"), choice.get("message")):
            if isinstance(place, dict) and (error := _meant(place.get("error"))):
                yield _complaint(choice, error)


def _meant(error: Any) -> Any:
    """Return *error*, or nothing if it only says that there is no error."""
    return None if error in (None, False, "", 0, {}, [], "null", "none") else error


def _complaint(whole: Mapping[str, Any], error: Any) -> Complaint:
    return Complaint(
        words=json.dumps(whole, ensure_ascii=False, separators=(",", ":")),
        status=_status(error) or _status(whole),
        is_bare=isinstance(error, str),
    )


def _status(error: Any) -> int:
    """Return the HTTP status that *error* names, 0 if it names none."""
    if not isinstance(error, Mapping):
        return 0
    members = _by_plain_names(error)
    for name in _CODES:
        code: Any = members.get(name)
        if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:  # noqa: PLR2004
            code = int(code)
        if type(code) in {int, float} and code in _STATUSES:
            return int(code)
    return 0
