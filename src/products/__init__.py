"""The products: one module each, whose class ``Hooks`` is what the product adds to a turn."""

from collections.abc import Mapping
from importlib import import_module

from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.errors import ConfigurationError

__all__ = ["load_hooks"]


def load_hooks(product: str, variables: Mapping[str, str]) -> ChatTurnHooks:
    """
    Return the hooks of *product*.

    Args:
        product: The name of its module here.
        variables: The deployment's own vars and secrets, for the product.

    Raises:
        ConfigurationError: There is no such product; names the setting ``PRODUCT``.
    """
    if not product.isidentifier():
        raise ConfigurationError("PRODUCT", f"is {product!r}, which is no module's name")
    name = f"{__name__}.{product}"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigurationError("PRODUCT", f"is {product!r}, but there is no products/{product}.py") from error
    hooks: ChatTurnHooks = module.Hooks(variables)
    return hooks
