"""The routes for files that messages name: a file is sent once, can be read back, and is deleted by retention."""

from typing import Final
from urllib.parse import quote

from chatturn.chat.files import FILE_ID, MAX_FILE_BYTES, FileFacts
from chatturn.errors import InvalidField, NotFound, PayloadTooLarge, UnsupportedMediaType
from chatturn.http.application import Call
from chatturn.http.messages import HttpResponse
from chatturn.http.problems import json_response, shown
from chatturn.http.query_strings import check_no_query, read_file_query
from chatturn.http.user_messages import FILE_TYPES

__all__ = ["FILES", "get_file", "post_file"]

FILES: Final = "/v1/files"

_CREATED: Final = 201
_UNCHANGING: Final = "private, max-age=31536000, immutable"


async def post_file(call: Call) -> HttpResponse:
    """Keep the body as a file, and return its id, which messages name; the same file gets the same id again."""
    name = read_file_query(call.request)
    media_type = _media_type(call)
    data = await call.request.read(MAX_FILE_BYTES)
    if not data:
        raise InvalidField("the body is empty", field="body")
    if len(data) > MAX_FILE_BYTES:
        raise PayloadTooLarge(f"a file may have at most {MAX_FILE_BYTES} bytes", field="body")
    facts = FileFacts(media_type=media_type, name=name, size=len(data), user_id=call.principal.user_id)
    file_id, kept_until = await call.service.keep_file(call.principal.tenant_id, facts, data)
    members = {
        "file": file_id,
        "mediaType": media_type,
        "name": name or None,
        "bytes": len(data),
        "keptUntil": kept_until,
    }
    return json_response(members, status=_CREATED)


async def get_file(call: Call) -> HttpResponse:
    """Return a file as it was sent; a browser saves it, and never shows it as a page of this origin."""
    check_no_query(call.request)
    file_id = call.parameters["file"]
    files, principal = call.service.deployment.files, call.principal
    known = FILE_ID.fullmatch(file_id) is not None
    facts = await files.facts(principal.tenant_id, principal.user_id, file_id) if known else None
    if facts is None:
        raise NotFound("there is no such file")
    headers = {
        "Content-Type": facts.media_type,
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(facts.name or file_id, safe='')}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": _UNCHANGING,
        "Vary": "Authorization",
    }
    if call.request.method == "HEAD":
        return HttpResponse(status=200, headers=headers)
    if (content := await files.stream(principal.tenant_id, file_id, facts)) is None:
        raise NotFound("there is no such file")
    return HttpResponse(status=200, headers=headers, content=content)


def _media_type(call: Call) -> str:
    """
    Return the media type in the headers.

    Raises:
        UnsupportedMediaType: The media type is none of `FILE_TYPES`, or the body is compressed.
        PayloadTooLarge: The Content-Length is more than `MAX_FILE_BYTES`.
    """
    headers = call.request.headers
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type not in FILE_TYPES:
        words = f"Content-Type is {shown(media_type)}, but must be one of {', '.join(FILE_TYPES)}"
        raise UnsupportedMediaType(words, field="Content-Type")
    if headers.get("content-encoding"):
        raise UnsupportedMediaType("the body must be sent as it is", field="Content-Encoding")
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > MAX_FILE_BYTES):  # noqa: PLR2004 - more than any file
        raise PayloadTooLarge(f"a file may have at most {MAX_FILE_BYTES} bytes", field="body")
    return media_type
