"""What the server of `forks` loads and works out once, so that a run of the small network starts in a moment."""

import timm  # noqa: F401
import torch
import torch.utils.tensorboard
import torchvision  # noqa: F401

import forks  # noqa: F401
from atrous.models.deeplab import DeepLabV3
from atrous.training import loop  # noqa: F401

torch.set_num_threads(1)
DeepLabV3("timm/lcnet_050", 4, multi_grid=None, aspp_rates=(1,))

import encodings.utf_8_sig  # noqa: E402, F401  # a test reads files as a user who cannot read the library's folder
