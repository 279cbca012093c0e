"""Files in a real R2 bucket of the local workerd: sent, named in messages, shown to the model, kept over a restart."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatturn.chat.files import MAX_FILE_BYTES
from tests.support.client import Client, answer_of
from tests.support.http import http
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import Worker, running_worker

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[1] / "worker" / "files.toml"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as started:
        yield started


@pytest.fixture(scope="module")
def bucket(upstream: Upstream) -> Iterator[Worker]:
    """A Worker with a bucket, whose sessions have owners."""
    variables = {
        "BACKEND": "openai",
        "PRODUCT": "assistant",
        "PROJECT_ID": "chatturn",
        "MODEL": "m",
        "OPENAI_BASE_URL": upstream.url,
        "OPENAI_API_KEY": "k",
        "SESSION_OWNER": "subject",
        "RETENTION_DAYS": "30",
    }
    with running_worker(deployment=CONFIG, variables=variables) as started:
        yield started


def send(worker: Worker, data: bytes = PNG, media_type: str = "image/png", query: str = "", **claims: Any) -> Any:
    """Send a file, and return the response."""
    headers = {**Client(worker.url, **claims).headers, "content-type": media_type}
    return http.post(f"{worker.url}/v1/files{query}", content=data, headers=headers, timeout=60)


def get(worker: Worker, file_id: str, **claims: Any) -> httpx.Response:
    """Get a file."""
    return http.get(f"{worker.url}/v1/files/{file_id}", headers=Client(worker.url, **claims).headers)


def test_a_file_is_sent_once_shown_to_the_model_and_got_again(bucket: Worker, upstream: Upstream) -> None:
    """Its id is the same when it is sent again, and it is there after the Worker was killed."""
    sent = send(bucket, query="?name=cat%20%F0%9F%90%88.png")
    file_id = sent.json()["file"]
    upstream.on("what is this", Script(text="A cat."))
    message: Any = [{"type": "text", "text": "what is this"}, {"type": "image", "file": file_id}]
    first = Client(bucket.url).post("pictures", message)
    bucket.kill()
    bucket.restart()
    upstream.on("and now", Script(text="Still a cat."))
    second = Client(bucket.url).post("pictures", "and now", index=1)
    got = get(bucket, file_id)
    shown = [call.body["messages"] for text in ("what is this", "and now") for call in upstream.calls(text)]
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}}

    assert (
        sent.status_code,
        sent.json()["bytes"],
        send(bucket, query="?name=cat%20%F0%9F%90%88.png").json()["file"],
    ) == (
        201,
        len(PNG),
        file_id,
    )
    assert (answer_of(first), answer_of(second)) == ("A cat.", "Still a cat.")
    assert [image in message["content"] for messages in shown for message in messages[:1]] == [True, True]
    assert (got.content, got.headers["content-type"]) == (PNG, "image/png")
    assert got.headers["content-length"] == str(len(PNG))
    assert "attachment" in got.headers["content-disposition"]
    listed = http.get(f"{bucket.url}/v1/sessions/pictures/messages", headers=Client(bucket.url).headers).json()
    assert listed["messages"][0]["parts"] == message
    export = http.get(f"{bucket.url}/v1/sessions/pictures/export", headers=Client(bucket.url).headers).text
    [line] = [json.loads(text) for text in export.split("\n")[:-1] if '"type":"file"' in text]
    assert (line["file"], line["url"]) == (file_id, image["image_url"]["url"])  # type: ignore[index]


def test_a_file_is_its_users_alone(bucket: Worker) -> None:
    """Another user of the tenant, and another tenant, have no such file, to get or to show to a model."""
    file_id = send(bucket, b"ann's").json()["file"]
    part: Any = [{"type": "image", "file": file_id}]
    for claims in ({"sub": "bob"}, {"tenant": "globex"}):
        status, problem = Client(bucket.url, **claims).problem("theirs", part)
        assert get(bucket, file_id, **claims).status_code == 404
        assert (status, problem["code"], problem["field"]) == (422, "file_missing", "message")
    assert bucket.sql("SELECT count(*) AS turns FROM chat_turns WHERE session_id = 'theirs'") == [{"turns": 0}]
    assert get(bucket, "file_20260101_nothing").status_code == 404


@pytest.mark.parametrize(
    ("data", "media_type", "query", "status"),
    [
        (b"x" * MAX_FILE_BYTES, "application/pdf", "", 201),
        (b"", "image/png", "", 422),
        (b"<svg/>", "image/svg+xml", "", 415),
        (b"x", "image/png", "?name=a%0Ab", 422),
        (b"x", "image/png", "?nane=a", 422),
    ],
)
def test_what_is_no_file_is_refused(bucket: Worker, data: bytes, media_type: str, query: str, status: int) -> None:
    """By its length, its type or its name; the largest one is kept."""
    assert send(bucket, data, media_type, query).status_code == status


def test_who_may_only_read_sends_no_file(bucket: Worker) -> None:
    """But gets one."""
    file_id = send(bucket, b"to read").json()["file"]

    assert send(bucket, scope="turns:read").status_code == 403
    assert get(bucket, file_id, scope="turns:read").content == b"to read"


def test_without_a_bucket_there_is_a_sentence_of_its_own(worker: Worker) -> None:
    """For sending, for getting and for naming one; what stands in the message itself is taken."""
    part: Any = [{"type": "image", "file": f"file_20260101_{'a' * 16}_{'b' * 32}"}]
    status, problem = Client(worker.url).problem("no-bucket", part)
    data: Any = [{"type": "image", "url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}]

    assert (status, problem["code"]) == (404, "files_not_kept")
    assert (send(worker).status_code, json.loads(send(worker).content)["code"]) == (404, "files_not_kept")
    assert get(worker, f"file_20260101_{'a' * 16}_{'b' * 32}").status_code == 404
    assert answer_of(Client(worker.url).post("inline", data))


def test_what_a_user_has_sent_is_deleted_with_their_sessions(bucket: Worker) -> None:
    """From the bucket, too; another user's stays."""
    own, other = (send(bucket, b"to forget", sub=user).json()["file"] for user in ("carl", "dora"))
    headers = Client(bucket.url, sub="carl", scope="turns operate").headers
    deleted = http.delete(f"{bucket.url}/v1/users/carl/sessions", headers=headers, timeout=60)

    assert deleted.status_code in {200, 202}, deleted.text
    assert [get(bucket, own, sub="carl").status_code, get(bucket, other, sub="dora").status_code] == [404, 200]
