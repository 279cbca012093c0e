"""Legal: answers within bounds, personal data redacted before anything is stored."""

import re
from typing import Final

from chatturn.product import ChatTurnHooks, StreamProducer, TurnContext, answer

__all__ = ["Hooks"]

_INSTRUCTIONS: Final = (
    "You help lawyers to read documents. Quote the passage that you rely on, and say so where there is none."
)

# The text may be long and hostile.  No pattern begins in the middle of characters that it has looked at before, so
# each takes time in proportion to the text's length, not to its square.
_PERSONAL: Final = (
    (re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "[e-mail]"),
    (re.compile(r"\b\d{3}-\d{2}-\d{4}\b"), "[social security number]"),
    (re.compile(r"(?<![\w+])\+?\d[\d ()/-]{7,}\d\b"), "[telephone]"),
)


class Hooks(ChatTurnHooks):
    """Ask with the firm's instructions, and redact the answer."""

    def produce(self, context: TurnContext) -> StreamProducer:
        """Stream the model's answer under the product's instructions."""
        return StreamProducer(answer(context, system=_INSTRUCTIONS))

    async def transform_final_text(self, text: str) -> str:
        """Replace what identifies a person; the live stream is not altered, the stored text is."""
        for pattern, name in _PERSONAL:
            text = pattern.sub(name, text)
        return text
