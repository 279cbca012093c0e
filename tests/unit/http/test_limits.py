"""What a request may be: what is within the limits passes unchanged, the rest is refused by name."""

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatturn.chat import files
from chatturn.chat.requests import TurnRequest
from chatturn.chat.thread.identity import ChatTurnIdentity, session_id_of, session_run_ids, turn_run_id
from chatturn.errors import (
    InvalidField,
    MalformedRequest,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)
from chatturn.http import limits, user_messages
from chatturn.http.limits import (
    MAX_BODY_BYTES,
    MAX_ID_CHARACTERS,
    MAX_METADATA_BYTES,
    MAX_MODEL_CHARACTERS,
    MAX_TURN_INDEX,
    check_body_headers,
    read_session_id,
    read_turn_index,
    read_turn_request,
)
from chatturn.http.strict_json import MAX_JSON_DEPTH, read_json_object
from chatturn.http.user_messages import MAX_MESSAGE_CHARACTERS

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def turn_body(**members: Any) -> bytes:
    return json.dumps({"message": "hello", **members}).encode()


def test_the_limits_are_what_the_documentation_says() -> None:
    """A limit that changes is a change of the API."""
    limits_of_all = {**vars(limits), **vars(user_messages), **vars(files)}
    assert {name: value for name, value in limits_of_all.items() if name.startswith("MAX_")} == {
        "MAX_BODY_BYTES": 1_048_576,
        "MAX_VERSION": 10_000,
        "MAX_MESSAGE_CHARACTERS": 200_000,
        "MAX_PARTS": 32,
        "MAX_URL_CHARACTERS": 2_048,
        "MAX_INLINE_CHARACTERS": 700_000,
        "MAX_NAME_CHARACTERS": 200,
        "MAX_FILE_BYTES": 4_194_304,
        "MAX_LOADED_BYTES": 4_194_304,
        "MAX_MODEL_CHARACTERS": 200,
        "MAX_METADATA_BYTES": 16_384,
        "MAX_PARAMETERS_BYTES": 65_536,
        "MAX_ID_CHARACTERS": 200,
        "MAX_TURN_INDEX": 1_000_000,
        "MAX_EVENT_KEY_CHARACTERS": 200,
        "MAX_EVENT_PAYLOAD_BYTES": 65_536,
        "MAX_TOOL_RESULT_CHARACTERS": 200_000,
        "MAX_REASON_CHARACTERS": 2_000,
        "MAX_TITLE_CHARACTERS": 200,
        "MAX_COMMENT_CHARACTERS": 4_000,
        "MAX_TICKET_CHARACTERS": 4_096,
        "MAX_TOKEN_CHARACTERS": 8_192,
        "MAX_TOKEN_HEADER_CHARACTERS": 512,
    }


# The headers


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; charset=utf8",
    ],
)
def test_json_in_utf8_is_accepted_however_it_is_spelled(media_type: str) -> None:
    """Media types are case-insensitive, and UTF-8 may be said or not."""
    check_body_headers({"content-type": media_type})


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain",
        "application/jsonp",
        "application/x-ndjson",
        "application/json, application/json",
        "application/json; charset=latin-1",
        "multipart/form-data; boundary=application/json",
    ],
)
def test_anything_but_json_in_utf8_is_refused(media_type: str) -> None:
    """A browser's form cannot start a turn."""
    with pytest.raises(UnsupportedMediaType, match="must be application/json"):
        check_body_headers({"content-type": media_type})


def test_a_missing_content_type_is_refused() -> None:
    """The body's type is never guessed."""
    with pytest.raises(UnsupportedMediaType):
        check_body_headers({})


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity"])
def test_an_encoded_body_is_refused(encoding: str) -> None:
    """Nothing is inflated here, so nothing can be a bomb."""
    with pytest.raises(UnsupportedMediaType, match="Content-Encoding"):
        check_body_headers({"content-type": "application/json", "content-encoding": encoding})


@pytest.mark.parametrize("length", [str(MAX_BODY_BYTES + 1), "9" * 5000])
def test_a_body_that_announces_too_much_is_refused_unread(length: str) -> None:
    """Its length is enough."""
    with pytest.raises(PayloadTooLarge, match=str(MAX_BODY_BYTES)):
        check_body_headers({"content-type": "application/json", "content-length": length})


@pytest.mark.parametrize("length", ["", "0", str(MAX_BODY_BYTES), "-5", "soon", "²"])
def test_a_length_that_says_nothing_against_it_passes(length: str) -> None:
    """What the header does not tell, reading the body does."""
    check_body_headers({"content-type": "application/json", "content-length": length})


# The path


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        ("thread-1", "thread-1"),
        ("a" * MAX_ID_CHARACTERS, "a" * MAX_ID_CHARACTERS),
        ("ann@example.org", "ann@example.org"),
        ("ann%40example.org", "ann@example.org"),
        ("%7Etilde_and...dots", "~tilde_and...dots"),
        ("7d444840-9dc0-11d1-b245-5ffdce74fad2", "7d444840-9dc0-11d1-b245-5ffdce74fad2"),
        ("auth0%7C5f7c8ec7c33c6c004bbafe82", "auth0|5f7c8ec7c33c6c004bbafe82"),
        ("-1001234567890:91088", "-1001234567890:91088"),
        ("%2B491701234567", "+491701234567"),
        ("+491701234567", "+491701234567"),
        ("C024BE91L%3A1401383885.000061", "C024BE91L:1401383885.000061"),
        ("!qporfwt%3Amatrix.org", "!qporfwt:matrix.org"),
        ("a%2Fb", "a/b"),
        ("a%5Cb", "a\\b"),
        ("a%20b", "a b"),
        ("100%25", "100%"),
        ("%2541", "%41"),
        ("%F0%9F%98%80", "😀"),
        ("...", "..."),
    ],
)
def test_an_ordinary_session_id_passes(segment: str, expected: str) -> None:
    """Encoded or not, it is the same session."""
    assert expected == read_session_id(segment)


@pytest.mark.parametrize(
    "segment",
    [
        "",
        ".",
        "..",
        "%2e%2e",
        "%20",
        "a%00",
        "a\0",
        "a%0a",
        "a%C2%85b",
        "a%E2%80%AEb",
        "chat:acme:thread-1:0",
        "chat%3Aacme%3Athread-1%3A12~3",
        "%ff",
        "%ED%A0%80",
        "%zz",
        "%",
        "a" * (MAX_ID_CHARACTERS + 1),
        "a" * 10_240,
    ],
)
def test_an_absurd_session_id_is_refused_by_name(segment: str) -> None:
    """The field and what it may hold are named, and the answer is short."""
    with pytest.raises(InvalidField, match=r"^session ") as caught:
        read_session_id(segment)

    assert caught.value.field == "session"
    assert len(str(caught.value)) < 300


@given(st.text(min_size=1, max_size=MAX_ID_CHARACTERS))
def test_every_printable_session_id_is_the_same_session_in_every_url_and_run_id(session_id: str) -> None:
    """Encoded as `encodeURIComponent` does, or more of it; and no two sessions share a run."""
    segment = quote(session_id.encode("utf-8", "surrogatepass"), safe="")
    try:
        read = read_session_id(segment)
    except InvalidField:
        assert not session_id.isprintable() or session_id.isspace() or session_id in {".", ".."}
        return

    assert session_id == read
    identity = ChatTurnIdentity(tenant_id="a:b", session_id=read, user_id="ann", turn_index=7)
    assert session_id == session_id_of(turn_run_id(identity))
    first, last = session_run_ids("a:b", read)
    assert first < turn_run_id(identity) < last


@pytest.mark.parametrize("index", [0, 1, 42, 999_999, MAX_TURN_INDEX])
def test_a_turn_index_within_its_limits_passes(index: int) -> None:
    """From zero to a million, both included."""
    assert index == read_turn_index(str(index))


@pytest.mark.parametrize(
    "segment",
    [
        "",
        "-1",
        "+1",
        "01",
        "00",
        "1.0",
        "1e3",
        "0x1",
        "1_000",
        " 1",
        "1\n",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "%C2%B2",
        "1000001",
        "9" * 5000,
        "%ff",
    ],
)
def test_any_other_turn_index_is_refused_by_name(segment: str) -> None:
    """One spelling a number, so one address a turn."""
    with pytest.raises(InvalidField, match=r"^turn_index ") as caught:
        read_turn_index(segment)

    assert caught.value.field == "turn_index"
    assert len(str(caught.value)) < 300


# The body


def test_a_message_alone_is_a_request() -> None:
    """Everything else is optional."""
    expected = TurnRequest(message="hello", model=None, metadata={}, supersede=False)

    assert expected == read_turn_request(b'{"message": "hello"}')
    assert expected == read_turn_request(b'{"message": "hello", "model": null, "metadata": null}')


@pytest.mark.parametrize(("said", "supersede"), [("refuse", False), ("supersede", True)])
def test_a_mismatch_is_superseded_only_on_purpose(said: str, *, supersede: bool) -> None:
    """Saying nothing is refusing."""
    assert read_turn_request(turn_body(on_mismatch=said)).supersede is supersede


def test_everything_at_its_limit_passes() -> None:
    """Limits are inclusive."""
    metadata = {"k": "v" * (MAX_METADATA_BYTES - len('{"k":""}'))}
    members = {
        "message": "\N{GRINNING FACE}" * MAX_MESSAGE_CHARACTERS,
        "model": "m" * MAX_MODEL_CHARACTERS,
        "metadata": metadata,
    }
    request = read_turn_request(json.dumps(members, ensure_ascii=False).encode())

    assert len(request.message) == MAX_MESSAGE_CHARACTERS
    assert metadata == request.metadata


@given(message=st.text(min_size=1), metadata=st.dictionaries(st.text(), json_values, max_size=5))
def test_what_passes_is_unchanged_and_can_be_stored(message: str, metadata: dict[str, Any]) -> None:
    """No trimming, no normalising: the run's hash is of what the user said."""
    try:
        request = read_turn_request(turn_body(message=message, metadata=metadata))
    except RequestError:
        return

    assert (message, metadata) == (request.message, request.metadata)
    assert "\0" not in message
    json.dumps([message, metadata], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("members", "error", "field"),
    [
        ({"message": None}, InvalidField, "message"),
        ({"message": 5}, InvalidField, "message"),
        ({"message": ["hello"]}, InvalidField, "message[0]"),
        ({"message": ""}, InvalidField, "message"),
        ({"message": " \n\t\u2003"}, InvalidField, "message"),
        ({"message": "a\0b"}, InvalidField, "message"),
        ({"message": "half \ud800"}, InvalidField, "message"),
        ({"message": "x" * (MAX_MESSAGE_CHARACTERS + 1)}, PayloadTooLarge, "message"),
        ({"model": ""}, InvalidField, "model"),
        ({"model": 5}, InvalidField, "model"),
        ({"model": "a\nb"}, InvalidField, "model"),
        ({"model": "\udfff"}, InvalidField, "model"),
        ({"model": "m" * (MAX_MODEL_CHARACTERS + 1)}, InvalidField, "model"),
        ({"metadata": []}, InvalidField, "metadata"),
        ({"metadata": "{}"}, InvalidField, "metadata"),
        ({"metadata": {"a": ["\ud800"]}}, InvalidField, "metadata"),
        ({"metadata": {"\ud800": 1}}, InvalidField, "metadata"),
        ({"metadata": {"k": "v" * MAX_METADATA_BYTES}}, PayloadTooLarge, "metadata"),
        ({"parameters": []}, InvalidField, "parameters"),
        ({"parameters": {"temprature": 1}}, InvalidField, "parameters.temprature"),
        ({"parameters": {"temperature": 2.1}}, InvalidField, "parameters.temperature"),
        ({"parameters": {"temperature": True}}, InvalidField, "parameters.temperature"),
        ({"parameters": {"max_tokens": 0}}, InvalidField, "parameters.max_tokens"),
        ({"parameters": {"seed": 1.5}}, InvalidField, "parameters.seed"),
        ({"parameters": {"stop": []}}, InvalidField, "parameters.stop"),
        ({"parameters": {"stop": ["\ud800"]}}, InvalidField, "parameters.stop"),
        ({"parameters": {"response_format": {"a": 2**53}}}, InvalidField, "parameters.response_format"),
        ({"parameters": {"reasoning": {"a": [-(2**60)]}}}, InvalidField, "parameters.reasoning"),
        ({"parameters": {"response_format": {"a": "v" * 65_536}}}, PayloadTooLarge, "parameters"),
        ({"on_mismatch": "replace"}, InvalidField, "on_mismatch"),
        ({"on_mismatch": None}, InvalidField, "on_mismatch"),
        ({"on_mismatch": ["supersede"]}, InvalidField, "on_mismatch"),
        ({"mesage": "typo"}, InvalidField, "mesage"),
        ({"Message": "case"}, InvalidField, "Message"),
    ],
)
def test_a_bad_member_is_refused_by_name(members: dict[str, Any], error: type[RequestError], field: str) -> None:
    """One error, the member's name, and a message of sane length."""
    with pytest.raises(error) as caught:
        read_turn_request(turn_body(**members))

    assert field == caught.value.field
    assert field in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_request_without_message_is_refused_by_name() -> None:
    """The one member that must be there."""
    with pytest.raises(InvalidField, match=r"^message is required"):
        read_turn_request(b"{}")


def test_an_absurdly_long_unknown_member_is_not_repeated_whole() -> None:
    """Neither the message nor the field's name grows with the request."""
    with pytest.raises(InvalidField) as caught:
        read_turn_request(turn_body(**{"x" * 10_000: 1}))

    assert len(str(caught.value)) + len(str(caught.value.field)) < 300


def test_a_body_that_was_longer_than_announced_is_refused() -> None:
    """Whatever read it, the limit holds."""
    with pytest.raises(PayloadTooLarge, match=str(MAX_BODY_BYTES)):
        read_turn_request(b" " * (MAX_BODY_BYTES + 1))


# JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"{",
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": 1} {}',
        b"[]",
        b'"text"',
        b"null",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "line\nbreak"}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-8-sig"),
        b"[" * 500_000,
        b'{"a":' * 200_000,
        b'{"a":"' + b"[" * 100 + b'","b":' + b"[" * 100,
    ],
)
def test_what_is_not_exactly_one_json_object_is_malformed(body: bytes) -> None:
    """No second reading is possible, and nothing is too deep to be read."""
    with pytest.raises(MalformedRequest, match=r"^body ") as caught:
        read_json_object(body)

    assert len(str(caught.value)) < 300


def test_an_unpaired_escape_is_json_and_left_to_its_member() -> None:
    r"""``"\ud800"`` is well-formed JSON; whether it may be stored is the member's question."""
    assert read_json_object(b'{"a": "\\ud800"}') == {"a": "\ud800"}


def test_the_deepest_allowed_nesting_passes_and_one_more_does_not() -> None:
    """The limit is inclusive, arrays and objects alike."""
    inner = MAX_JSON_DEPTH - 1

    read_json_object(b'{"a":' + b"[" * inner + b"]" * inner + b"}")
    with pytest.raises(MalformedRequest, match=f"deeper than {MAX_JSON_DEPTH}"):
        read_json_object(b'{"a":' + b"[" * (inner + 1) + b"]" * (inner + 1) + b"}")


@pytest.mark.parametrize(
    "text", ["[" * 1000, "{" * 1000, '\\"[' * 1000, "\\" * 999 + '"[[' * 100, "[]" * 1000], ids=repr
)
def test_brackets_inside_text_are_no_nesting(text: str) -> None:
    """A user may well send code."""
    assert {"a": [text], "b": text} == read_json_object(json.dumps({"a": [text], "b": text}).encode())


def depth(value: object) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inner), default=0)
    return 0


@given(st.dictionaries(st.text(), json_values))
@example({"a": [["\\"], '"[', [[]] * 40]})
def test_whatever_is_not_too_deep_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    """The depth is counted, not guessed."""
    text = json.dumps(value, ensure_ascii=False).encode()
    if depth(value) <= MAX_JSON_DEPTH:
        assert value == read_json_object(text)


# Fragments whose every sequence is close to JSON, and most of which are not.
fragments = st.lists(
    st.sampled_from(["[" * 20, "{", "]" * 20, "}", '"', "\\", '\\"', '{"a":' * 20, ":", ",", "1", " ", "[]," * 20]),
    max_size=60,
)


@given(fragments)
def test_nothing_deeper_than_the_limit_ever_reaches_the_parser(pieces: list[str]) -> None:
    """Where the scan of brackets and the parser could disagree, the parser had stopped before."""
    try:
        value = read_json_object("".join(pieces).encode())
    except MalformedRequest:
        return

    assert depth(value) <= MAX_JSON_DEPTH


@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_a_refusal(body: bytes) -> None:
    """Nothing else is ever raised."""
    try:
        request = read_turn_request(body)
    except RequestError:
        return

    assert request.message.strip()


def test_a_whole_number_may_be_written_with_a_fraction_of_0() -> None:
    """To JSON it is the same number, and so it is the same turn."""
    written = turn_body(parameters={"seed": 4.0, "temperature": 1.0}, replace={"kind": "edit", "version": 2.0})
    request = read_turn_request(written)

    assert json.dumps(request.parameters) == '{"seed": 4, "temperature": 1.0}'
    assert request.replace is not None
    assert json.dumps(request.replace.version) == "2"
