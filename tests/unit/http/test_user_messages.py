"""A message as a text or as parts: what is taken, and what is refused by name."""

import base64
import json
import re
from typing import Any

import pytest

from chatturn.errors import InvalidField, PayloadTooLarge, RequestError
from chatturn.http.limits import read_turn_request
from chatturn.http.user_messages import (
    MAX_INLINE_CHARACTERS,
    MAX_MESSAGE_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MAX_PARTS,
    MAX_URL_CHARACTERS,
    MESSAGE,
    read_user_message,
)

PNG = "data:image/png;base64,iVBORw=="
TEXT = {"type": "text", "text": "look"}
IMAGE = {"type": "image", "url": PNG}
ID = f"file_20260101_{'a' * 16}_{'b' * 32}"


def inline(characters: int) -> str:
    """Return a picture whose address has about so many characters."""
    head = "data:image/png;base64,"
    return head + "A" * ((characters - len(head)) // 4 * 4)


@pytest.mark.parametrize(
    ("value", "text", "parts"),
    [
        ("look", "look", ()),
        ([TEXT], "look", ()),
        ([TEXT, {"type": "text", "text": " here"}], "look here", ()),
        ([TEXT, IMAGE], "look", [TEXT, IMAGE]),
        ([IMAGE], "", [IMAGE]),
        ([{"type": "image", "url": "https://example.com/a.png?b=c"}], "", None),
        ([{"type": "image", "file": ID}], "", None),
        ([{"type": "file", "url": "data:application/pdf;base64,JVBERg==", "name": "a b.pdf"}], "", None),
        ([{"type": "file", "file": ID, "name": "a.pdf"}], "", None),
    ],
)
def test_a_message_is_a_text_or_parts(value: Any, text: str, parts: Any) -> None:
    """Parts that are all text are one text, so that both ways of saying it are the same turn."""
    said = read_user_message(value)

    assert (said.text, list(said.parts)) == (text, list(value if parts is None else parts))


@pytest.mark.parametrize(
    ("value", "error", "field"),
    [
        ([], InvalidField, "message"),
        ([TEXT] * (MAX_PARTS + 1), InvalidField, "message"),
        ([{"type": "text", "text": " "}], InvalidField, "message"),
        ([{"type": "text"}], InvalidField, "message[0].text"),
        ([TEXT, {"type": "text", "text": "a\0"}], InvalidField, "message[1].text"),
        ([{**TEXT, "txet": 1}], InvalidField, "message[0]"),
        ([{"type": "video", "url": PNG}], InvalidField, "message[0].type"),
        ([{"type": ["image"], "url": PNG}], InvalidField, "message[0].type"),
        ([{"type": "image"}], InvalidField, "message[0]"),
        ([{**IMAGE, "file": ID}], InvalidField, "message[0]"),
        ([{**IMAGE, "name": "a"}], InvalidField, "message[0]"),
        ([{"type": "image", "file": "file_1"}], InvalidField, "message[0].file"),
        ([{"type": "image", "file": f"../{ID}"}], InvalidField, "message[0].file"),
        ([{"type": "image", "url": 5}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "http://example.com/a.png"}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "https://ann:secret@example.com/a.png"}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "https://["}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "https://exa mple.com/"}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "file:///etc/passwd"}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "data:image/svg+xml;base64,AAAA"}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "data:application/pdf;base64,AAAA"}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "data:image/png,AAAA"}], InvalidField, "message[0].url"),
        ([{"type": "image", "url": "data:image/png;base64,AAA"}], InvalidField, "message[0].url"),
        ([{"type": "file", "url": PNG, "name": "a\nb"}], InvalidField, "message[0].name"),
        ([{"type": "file", "url": PNG, "name": "a" * (MAX_NAME_CHARACTERS + 1)}], InvalidField, "message[0].name"),
        (
            [{"type": "image", "url": "https://example.com/" + "a" * MAX_URL_CHARACTERS}],
            PayloadTooLarge,
            "message[0].url",
        ),
        ([{"type": "image", "url": inline(MAX_INLINE_CHARACTERS + 100)}], PayloadTooLarge, "message"),
        ([IMAGE, {"type": "text", "text": "x" * (MAX_MESSAGE_CHARACTERS + 1)}], PayloadTooLarge, "message"),
    ],
)
def test_a_bad_part_is_refused_by_its_place(value: Any, error: type[RequestError], field: str) -> None:
    """Each has its place in its error, which is short, and repeats no address."""
    with pytest.raises(error) as caught:
        read_user_message(value)

    assert (caught.value.field, len(str(caught.value)) < 300, "secret" in str(caught.value)) == (field, True, False)


def test_the_largest_message_is_read_whole() -> None:
    """As many characters in its addresses as there may be."""
    url = inline(MAX_INLINE_CHARACTERS)
    request = read_turn_request(json.dumps({"message": [{"type": "image", "url": url}]}).encode())

    assert (request.message, request.parts[0]["url"]) == ("", url)


def test_the_schema_takes_what_is_read() -> None:
    """The pattern of an address, tried with both kinds and with what is neither."""
    [_, image, *_] = MESSAGE["anyOf"][1]["items"]["anyOf"]
    pattern = re.compile(image["properties"]["url"]["pattern"])

    assert [bool(pattern.search(url)) for url in (PNG, "https://a.test/b", "http://a.test/b", "data:x")] == [
        True,
        True,
        False,
        False,
    ]
    assert base64.b64decode(PNG.rpartition(",")[2]) == b"\x89PNG"
