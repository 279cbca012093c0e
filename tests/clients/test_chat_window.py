"""The tutorial's chat window, in a real browser."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import token
from tests.support.upstream import Upstream
from tests.support.upstream_script import Script
from tests.support.worker import running_worker

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

if not (HERE / "node_modules" / "puppeteer-core").exists():
    pytest.skip("the clients are not installed: make clients", allow_module_level=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """The project's folder on a server of its own, as the tutorial has it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(ROOT))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.timeout(180)
def test_two_tabs_show_one_thread(pages: str) -> None:
    """A question, one typed ahead, an edit in the other tab, the way back, and a reload."""
    with Upstream() as upstream:
        for question in ("one.", "two.", "uno."):
            upstream.on(question, Script(text=f"re: {question}", pause_s=0.2))
        variables = {
            "BACKEND": "openai",
            "OPENAI_BASE_URL": upstream.url,
            "OPENAI_API_KEY": "k",
            "WHEN_BUSY": "queue",
            "CORS_ORIGINS": pages,
        }
        with running_worker(variables=variables) as worker:
            page = f"{pages}/examples/chat/#url={worker.url}&token={token()}&chat=window"
            asked = json.dumps({"page": page, "chromium": shutil.which("chromium")})
            node = Path(sys.executable).with_name("node")
            done = subprocess.run(
                [node, "chat_window.mjs", asked], cwd=HERE, capture_output=True, text=True, timeout=150, check=False
            )
    assert done.returncode == 0, done.stderr[-4_000:]
    assert json.loads(done.stdout) == {"errors": []}
