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


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}


def with_openai_tools(asked: dict[str, Any]) -> Iterator[str]:
    """
    Loop over tools with the package `openai`, streamed: the calls are put together from their pieces.

    A stream that breaks off the SDK does not ask for again: its user sends the same messages once more.
    """
    from openai import APIError, OpenAI  # noqa: PLC0415 - only this client needs it, and it takes seconds

    client, messages = OpenAI(base_url=asked["url"], api_key=asked["token"], max_retries=5), list(asked["messages"])
    while True:
        try:
            with client.chat.completions.stream(model="default", messages=messages, tools=[TOOL]) as stream:
                answer = stream.get_final_completion().choices[0].message
        except APIError:
            time.sleep(0.5)
            continue
        yield answer.content or ""
        if not answer.tool_calls:
            return
        calls = [each.model_dump(include={"id", "type", "function"}) for each in answer.tool_calls]
        for call in calls:
            call["function"] = {name: call["function"][name] for name in ("name", "arguments")}
        messages.append({"role": "assistant", "content": answer.content, "tool_calls": calls})
        for call in calls:
            done = f" [looked at {json.loads(call['function']['arguments'])['at']}] "
            yield done
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": done.strip()})


def with_langchain_tools(asked: dict[str, Any]) -> Iterator[str]:
    """Loop over tools with `langchain-openai`, whose messages are told apart by their ids."""
    from langchain_core.messages import (  # type: ignore[import-not-found]  # noqa: PLC0415 - likewise
        BaseMessage,
        HumanMessage,
        ToolMessage,
    )
    from langchain_openai import ChatOpenAI  # noqa: PLC0415 - likewise

    model = ChatOpenAI(base_url=asked["url"], api_key=asked["token"], model="default", use_responses_api=False)
    messages: list[BaseMessage] = [HumanMessage(each["content"]) for each in asked["messages"]]
    while True:
        answer = model.bind_tools([TOOL]).invoke(messages)
        assert answer.id not in [message.id for message in messages]
        messages.append(answer)
        yield str(answer.content)
        if not answer.tool_calls:
            return
        for call in answer.tool_calls:
            done = f" [looked at {call['args']['at']}] "
            yield done
            messages.append(ToolMessage(done.strip(), tool_call_id=call["id"]))


CLIENTS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "openai": with_openai,
    "openai-at-once": with_openai_at_once,
    "openai-tools": with_openai_tools,
    "langchain": with_langchain,
    "langchain-tools": with_langchain_tools,
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
