"""The tutorial of the chat window shows the code that is tested, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tutorial_quotes_the_example() -> None:
    """Line by line, in its order."""
    code = "\n".join(line.strip() for line in (ROOT / "examples/chat/thread.js").read_text().splitlines())
    blocks = re.findall(
        r"^ *```js\n(.*?)^ *```", (ROOT / "docs/tutorial/chat-window.md").read_text(), re.MULTILINE | re.DOTALL
    )

    assert len(blocks) >= 8
    for block in blocks:
        assert "\n".join(line.strip() for line in block.splitlines()) in code, block
