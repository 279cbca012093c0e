"""What of a session the model is shown: its latest finished turns, as far as they fit.  Pure."""

from collections.abc import Sequence

from chatturn.backends.api import ChatMessage

__all__ = ["recent"]


def recent(newest_first: Sequence[ChatMessage], most_characters: int) -> list[ChatMessage]:
    """
    Return the latest messages, oldest first, that have no more than *most_characters* together.

    Turns stay whole: an answer is never shown without its question, nor a question that has an empty answer.

    Args:
        newest_first: The messages, each turn's answer before its question.
        most_characters: 0 for none at all.
    """
    kept: list[ChatMessage] = []
    size = 0
    for answer, question in zip(newest_first[::2], newest_first[1::2], strict=False):
        if not answer["content"]:
            continue
        size += len(answer["content"]) + len(question["content"])
        if size > most_characters:
            break
        kept += (answer, question)
    return kept[::-1]
