"""Checkpoints of other libraries as models of ours, and back: a file for each library, listed in `convert.py`.

`atrous.models.convert` does the same for a network of torchvision or segmentation_models_pytorch that is in memory.
"""
