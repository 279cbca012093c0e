"""OpenAI's SDK on chatturn: one address and one header more, and no answer is lost, doubled or paid twice."""

import os
import sys
import time
import uuid

from openai import APIError, APIStatusError, OpenAI

client = OpenAI(base_url=os.environ["CHATTURN_URL"] + "/v1", api_key=os.environ["CHATTURN_TOKEN"])


def ask(question: str, key: str) -> str:
    """Return the answer; a stream that breaks off is asked for again under its key.  Another key: another answer."""
    while True:
        text = ""
        try:
            stream = client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": question}],
                stream=True,
                extra_headers={"Idempotency-Key": key},
            )
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                sys.stdout.write(f"\r{text}")
                if chunk.choices[0].finish_reason:
                    return text
        except KeyboardInterrupt:  # leaving does not stop the turn: a cancel does, and what was said is kept
            *_, session, turn = stream.response.headers["x-workflow-run-id"].split(":")
            client.post(f"/sessions/{session}/turns/{turn}/cancel", cast_to=object)
            return text
        except APIError as error:
            if isinstance(error, APIStatusError) or error.code in {"cancelled", "suspended"}:
                raise  # final; what may pass the SDK has tried again by itself
            sys.stderr.write(f"\n{error} Asking again.\n")
        time.sleep(0.5)


ask(sys.argv[1], key=sys.argv[2] if len(sys.argv) > 2 else str(uuid.uuid4()))  # noqa: PLR2004 - the second argument
