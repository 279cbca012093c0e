"""The products, one module each; a module's class ``Hooks`` is what the product adds to a turn."""

from collections.abc import Callable, Mapping
from typing import Final

from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.errors import ConfigurationError
from products import agent, assistant, gtm, legal

__all__ = ["PRODUCTS", "make_hooks"]

PRODUCTS: Final[dict[str, Callable[[Mapping[str, str]], ChatTurnHooks]]] = {
    "agent": agent.Hooks,
    "assistant": assistant.Hooks,
    "gtm": gtm.Hooks,
    "legal": legal.Hooks,
}
"""
Each product under its name, the value of the setting ``PRODUCT``.

All are imported with the Worker, before the platform takes its snapshot, so that no request waits for an import.
"""


def make_hooks(product: str, variables: Mapping[str, str]) -> ChatTurnHooks:
    """
    Make the hooks of *product*.

    Args:
        product: Its name in `PRODUCTS`.
        variables: The deployment's own vars and secrets, for the product.

    Raises:
        ConfigurationError: There is no such product; the error names the setting ``PRODUCT``.
    """
    if product not in PRODUCTS:
        names = ", ".join(sorted(PRODUCTS))
        raise ConfigurationError("PRODUCT", f"must be one of {names}; a new one is added in src/products/__init__.py")
    return PRODUCTS[product](variables)
