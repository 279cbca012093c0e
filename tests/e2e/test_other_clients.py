"""The routes for other clients, in the real workerd; what their clients themselves do there is `make clients`."""

import threading
from typing import Any

import httpx

from tests.support.chat_clients import CompletionView, UiMessageView
from tests.support.client import Client, token
from tests.support.http import http
from tests.support.worker import Worker

HEADERS = {"authorization": f"Bearer {token()}"}
QUESTION = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}


def asked(**members: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": "hello"}], **members}


def test_a_chat_of_the_ai_sdk(worker: Worker) -> None:
    """Streamed, resumed from a chunk on, and found again by the chat's id."""
    url = f"{worker.url}/v1/ai-sdk/chat"
    first = http.post(url, json={"id": "ai-sdk", "messages": [QUESTION]}, headers=HEADERS)
    view, resumed = UiMessageView(), UiMessageView()
    view.read(first.text)
    resumed.read(first.text[: len(first.text) // 2])
    resumed.read(http.get(f"{url}/ai-sdk/stream?startIndex={resumed.chunks}", headers=HEADERS).text)

    assert ("v1", "text/event-stream") == (
        first.headers["x-vercel-ai-ui-message-stream"],
        first.headers["content-type"],
    )
    assert ("stop", view.shown()) == (view.finish_reason, resumed.shown())
    assert "“hello”" in view.text


def test_a_completion_streamed_and_whole(worker: Worker) -> None:
    """One turn under one key, in both forms."""
    url, headers = f"{worker.url}/v1/chat/completions", {**HEADERS, "idempotency-key": "smoke"}
    streamed = http.post(url, json=asked(stream=True, stream_options={"include_usage": True}), headers=headers)
    whole = http.post(url, json=asked(), headers=headers).json()
    view = CompletionView()
    view.read(streamed.text)

    assert view.done
    assert (view.text, view.usage) == (whole["choices"][0]["message"]["content"], whole["usage"])
    assert "default" == http.get(f"{worker.url}/v1/models", headers=HEADERS).json()["data"][0]["id"]
    refused = http.post(url, json=asked(n=2), headers=headers)
    assert (400, "unsupported_parameter") == (refused.status_code, refused.json()["error"]["code"])


def test_a_completion_goes_on_when_its_client_has_gone(worker: Worker) -> None:
    """Not streamed, there is no response yet that would notice; the turn is run to its end all the same."""
    url = f"{worker.url}/v1/chat/completions"
    body = asked(metadata={"session_id": "gone"})
    gone = threading.Thread(target=_give_up_after, args=(url, body, 0.3))
    gone.start()
    gone.join()

    Client(worker.url).wait_for("gone", "completed")
    [run] = worker.sql("SELECT epoch FROM durable_runs WHERE scenario_id = 'gone'")
    assert 1 == run["epoch"]


def _give_up_after(url: str, body: dict[str, Any], seconds: float) -> None:
    try:
        http.post(url, json=body, headers=HEADERS, timeout=seconds)
    except httpx.ReadTimeout:
        return
    raise AssertionError("it was answered too soon")
