"""The network and its weights; called, ``atrous.models()``, it lists the weights that the package carries."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atrous.models.weights import ModelCard


class _Listing(ModuleType):
    """This folder of modules, which can be called."""

    def __call__(self) -> dict[str, ModelCard]:
        """The card of every named model, by name: what it segments, on which data, how well, under which licence."""
        from atrous.models.weights import cards

        return {name: card for name, (_, card) in cards().items()}


sys.modules[__name__].__class__ = _Listing
