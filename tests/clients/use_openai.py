"""The SDKs for OpenAI of PyPI, as an application uses them: a request, and the same one again where it broke off."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

TRIES = 30


def with_openai(asked: dict[str, Any]) -> Iterator[str]:
    """Stream with the package `openai`."""
    from openai import OpenAI  # type: ignore[import-not-found]  # noqa: PLC0415 - only this client needs it, and it takes seconds

    client = OpenAI(base_url=asked["url"], api_key=asked["token"])
    stream = client.chat.completions.create(
        model="default", messages=asked["messages"], stream=True, extra_headers={"Idempotency-Key": asked["key"]}
    )
    for chunk in stream:
        if chunk.choices:
            yield chunk.choices[0].delta.content or ""
            if chunk.choices[0].finish_reason:
                return
    raise RuntimeError("the stream ended without a finish_reason")


def with_openai_at_once(asked: dict[str, Any]) -> Iterator[str]:
    """Ask for the whole answer with the package `openai`, without a key: its own retries are all there is."""
    from openai import OpenAI  # noqa: PLC0415 - only this client needs it, and it takes seconds

    client = OpenAI(base_url=asked["url"], api_key=asked["token"], max_retries=5)
    answer = client.chat.completions.create(model="default", messages=asked["messages"])
    yield answer.choices[0].message.content or ""


def with_langchain(asked: dict[str, Any]) -> Iterator[str]:
    """Stream with `langchain-openai`."""
    from langchain_openai import ChatOpenAI  # type: ignore[import-not-found]  # noqa: PLC0415 - only this client needs it, and it takes seconds

    model = ChatOpenAI(
        base_url=asked["url"],
        api_key=asked["token"],
        model="default",
        use_responses_api=False,
        default_headers={"Idempotency-Key": asked["key"]},
    )
    for chunk in model.stream([(each["role"], each["content"]) for each in asked["messages"]]):
        yield str(chunk.content)


def with_litellm(asked: dict[str, Any]) -> Iterator[str]:
    """Stream with `litellm`."""
    import litellm  # type: ignore[import-not-found]  # noqa: PLC0415 - only this client needs it, and it takes seconds

    stream = litellm.completion(
        model="openai/default",
        api_base=asked["url"],
        api_key=asked["token"],
        messages=asked["messages"],
        stream=True,
        extra_headers={"Idempotency-Key": asked["key"]},
    )
    for chunk in stream:
        yield chunk.choices[0].delta.content or ""


CLIENTS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "openai": with_openai,
    "openai-at-once": with_openai_at_once,
    "langchain": with_langchain,
    "litellm": with_litellm,
}


def main() -> None:
    """Ask until there is a whole answer; print it, and how often that took asking."""
    asked = json.loads(sys.argv[2])
    errors: list[str] = []
    for _ in range(TRIES):
        text = ""
        try:
            for piece in CLIENTS[sys.argv[1]](asked):
                text += piece
                if asked.get("leave_after") and len(text) > asked["leave_after"]:
                    break
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises, its user asks again
            errors.append(f"{type(error).__name__}: {error}"[:200])
            time.sleep(0.5)
        else:
            sys.stdout.write(json.dumps({"text": text, "errors": errors}) + "\n")
            return
    raise SystemExit("\n".join(errors))


main()
