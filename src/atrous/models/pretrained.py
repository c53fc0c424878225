"""What a trained model is used for: its inference form, and the Hugging Face hub."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from atrous.models.inference import inference_form


class Pretrained(nn.Module):
    """Base class of a model that can be folded for inference, saved for the hub and loaded from it."""

    def for_inference(self, *, dtype: torch.dtype | None = None, compile: bool | str = False) -> Self:
        """A copy for inference alone: batch norm folded into the convolutions, ``channels_last``.

        Args:
            dtype: of weights and activations. None is the fastest that the machine has: bfloat16 on a CPU with
                AMX or AMD's AVX512-BF16 and on a GPU from Ampere on, float16 on an older GPU, float32 elsewhere.
            compile: by ``torch.compile``, at the first images of a size and output stride: True for its own backend,
                which on a CPU needs a C++ compiler, or a backend's name. Meant for GPUs; on a CPU our own convolutions,
                which are then left out, are faster.

        Returns:
            A model that takes and gives float32, whatever `dtype`, with this one's logits up to rounding in `dtype`;
            its `output_stride` can be set. Weights that are changed in it are seen where PyTorch counts the change
            (``copy_`` or ``load_state_dict``, say), not through ``.data`` or NumPy.
        """
        return inference_form(self, dtype, compile=compile)

    def save_pretrained(self, folder: str | Path, card: Any = None, *, half: bool = True) -> None:
        """Write weights and a README for the Hugging Face hub into a folder; see `atrous.models.publish`."""
        import_module("atrous.models.publish").save_pretrained(self, folder, card, half=half)  # which imports this

    def push_to_hub(self, name: str, card: Any = None, *, private: bool = False, half: bool = True) -> str:
        """Upload to ``user/name`` on the Hugging Face hub; gives ``user/name@commit``. See `atrous.models.publish`."""
        said: str = import_module("atrous.models.publish").push_to_hub(self, name, card, private=private, half=half)
        return said

    @classmethod
    def from_pretrained(cls, source: str | Path, *, output_stride: int | None = None) -> Self:
        """The model in a folder, or ``user/name`` on the Hugging Face hub; its `card` is kept. See `atrous.load`."""
        model: Self = import_module("atrous.models.weights").load(source, output_stride=output_stride)[0]
        return model
