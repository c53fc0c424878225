"""The network and its weights; called, ``atrous.models()``, it lists the weights that the package carries.

`deeplab.py` is the model. A new backbone is a file with a subclass of `Backbone` and a line in ``build_backbone`` of
`deeplab.py`; any convolutional network of timm is one already (`timm_backbone.py`). `weights.py` reads our own files,
`interchange/` checkpoints of other libraries, `exported.py` exported files.
"""

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
