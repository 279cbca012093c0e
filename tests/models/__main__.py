"""
`make models`: every recorded answer of a model API, played to the real Worker, and a table of what came of them.

One Worker is started for all; the cases run beside each other, since some wait for a minute.  With names as
arguments only those cases run.  The exit status is 1 if a turn did not come out as it should.
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.client import OK
from pathlib import Path
from typing import Final

from tests.models.cases import Case, all_cases
from tests.models.player import Player
from tests.models.verdict import Outcome, differences, in_words
from tests.support.client import Client, parsed
from tests.support.http import http
from tests.support.worker import Worker, running_worker

_AT_ONCE: Final = 12
_TURN_S: Final = 120
_LOG_S: Final = 5  # a line is printed a little after it was said
_PRODUCTS: Final = Path(__file__).parent / "products"


def main(names: list[str]) -> int:
    """Play the cases; return an exit status."""
    cases = [case for case in all_cases() if not names or case.name in names]
    began = time.monotonic()
    with Player({case.name: case for case in cases}) as player:
        variables = {
            "BACKEND": "openai",
            "OPENAI_BASE_URL": player.url,
            "OPENAI_API_KEY": "sk-recorded",
            "MAX_ATTEMPTS": "3",
            "PRODUCT": "recorded",
        }
        products = {path.stem: path for path in _PRODUCTS.glob("*.py")}
        with running_worker(variables=variables, products=products) as worker, ThreadPoolExecutor(_AT_ONCE) as pool:
            slow_first = sorted(cases, key=_seconds, reverse=True)
            outcomes = pool.map(partial(_play, worker, player), slow_first)
            wrong = [
                (case, differences(case.want, outcome)) for case, outcome in zip(slow_first, outcomes, strict=True)
            ]
    return _report(wrong, time.monotonic() - began)


def _seconds(case: Case) -> float:
    return sum(pause_s for answer in case.answers for pause_s, _ in answer.chunks)


def _play(worker: Worker, player: Player, case: Case) -> Outcome:
    client = Client(worker.url)
    message = case.message if case.tools == "none" else f"{case.tools}: {case.message}"
    body = {"message": message, "model": case.name}
    post = partial(http.post, client.address(case.name), json=body, headers=client.headers, timeout=_TURN_S)
    answered = post()
    if answered.status_code != OK:
        print(f"{case.name}: HTTP {answered.status_code} {answered.text[:300]}")
    told = "told" in case.want
    messages = f"{worker.url}/v1/sessions/{case.name}/messages"
    if words := case.want.get("log"):
        with suppress(AssertionError):  # the verdict says so
            worker.logged(words, seconds=_LOG_S)
    return Outcome(
        lines=parsed(answered) if answered.status_code == OK else [],
        requests=player.requests(case.name),
        log=worker.log,
        replay=post().text if told else "",
        messages=http.get(messages, headers=client.headers).text if told else "",
    )


def _report(wrong: Sequence[tuple[Case, list[str]]], seconds: float) -> int:
    for case, words in wrong:
        print(f"{'differs' if words else 'holds':8} {case.name:40} {in_words(case.want)}")
        for line in [*words, *case.sources[:1]] if words else ():
            print(f"    {line}")
    bad = sum(bool(words) for _, words in wrong)
    print(f"\n{len(wrong)} recorded answers, {bad} differ, {seconds:.0f} s")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
