"""What the server of `forks` loads and works out once, so that a run of the small network starts in a moment."""

import gc

import timm  # noqa: F401
import torch
import torch.utils.tensorboard
import torchvision  # noqa: F401
from PIL import Image, ImageFont

import forks  # noqa: F401
from atrous.cli import commands  # noqa: F401
from atrous.data import overlay  # noqa: F401
from atrous.data.checks import page  # noqa: F401
from atrous.models.deeplab import DeepLabV3
from atrous.prediction import demo, files  # noqa: F401
from atrous.training import loop, pictures, run_page  # noqa: F401

torch.set_num_threads(1)
DeepLabV3("timm/lcnet_050", 4, multi_grid=None, aspp_rates=(1,))

Image.init()  # the readers of every format
ImageFont.load_default(12)

import encodings.utf_8_sig  # noqa: E402, F401  # a test reads files as a user who cannot read the library's folder

gc.freeze()  # what all of them share is never looked through again
