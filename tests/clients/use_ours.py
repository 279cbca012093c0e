"""Our own client for Python, waiting and awaiting."""

import asyncio
import json
import sys

from chatturn_client import AsyncChatTurnClient, ChatTurnClient


async def awaited(asked: dict[str, str]) -> str:
    """Ask with the client that awaits."""
    async with AsyncChatTurnClient(asked["url"], token=asked["token"]) as client:
        return (await client.turn(asked["chat"], 0).ask(asked["question"])).text


def waited(asked: dict[str, str]) -> str:
    """Ask with the client that waits."""
    with ChatTurnClient(asked["url"], token=asked["token"]) as client:
        return client.turn(asked["chat"], 0).ask(asked["question"]).text


question = json.loads(sys.argv[2])
text = waited(question) if sys.argv[1] == "waits" else asyncio.run(awaited(question))
sys.stdout.write(json.dumps({"text": text, "errors": []}) + "\n")
