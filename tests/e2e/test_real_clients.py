"""
One question by each real client, unmodified: what `make clients` tries with faults, without any.

All ask at once, since most of each client's time is its start.  Where they are not installed, or Debian's Chromium is
not, the test is skipped and says so: `make clients` installs them.
"""

import shutil

import pytest

from tests.clients.test_clients import (
    AI_SDK,
    OPENAI,
    OURS,
    PAGES,
    WORDS,
    Chat,
    assert_whole,
    front,
    pages,
    upstream,
    worker,
)
from tests.support.front import Front
from tests.support.upstream import Upstream

__all__ = ["front", "pages", "upstream", "worker"]


def ask_all(clients: list[str], front: Front, upstream: Upstream) -> None:
    """Let all of *clients* ask, and see that each has the whole, and cost one model call."""
    chats = [Chat(front, upstream, client, "smoke") for client in clients]
    started = [(chat, chat.start()) for chat in chats]
    for chat, process in started:
        said = chat.said(process)

        assert_whole(chat.row(said))
        assert (WORDS, []) == (said["text"].strip(), said["errors"]), chat.client


def test_each_real_client_has_the_whole_answer(front: Front, upstream: Upstream) -> None:
    """OpenAI's of PyPI and npm, LangChain's, LiteLLM's, the AI SDK's with both transports, and ours."""
    ask_all([*OPENAI, *AI_SDK, *OURS], front, upstream)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's Chromium is not installed: make chromium")
def test_each_page_has_the_whole_answer(front: Front, upstream: Upstream) -> None:
    """`useChat` in React, and an EventSource, from another origin."""
    ask_all([*PAGES], front, upstream)
