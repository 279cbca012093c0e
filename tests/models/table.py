"""The table of the recorded answers, as the manual has it."""

from tests.models.cases import all_cases
from tests.models.verdict import in_words

__all__ = ["table"]


def table() -> str:
    """Return a row for each case: its name, what should come of it, and who reported it."""
    rows = [f"| `{case.name}` | {in_words(case.want)} | {_links(case.sources)} |" for case in all_cases()]
    return "\n".join(["| Answer | Comes to | Reported |", "|---|---|---|", *rows, ""])


def _links(sources: tuple[str, ...]) -> str:
    return " ".join(f"[{number}]({source})" for number, source in enumerate(sources, 1))
