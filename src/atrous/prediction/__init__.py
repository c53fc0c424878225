"""Photographs in, masks out: `Predictor` and its result, files and folders, videos.

Also what masks are made for: pseudo-labels to train on, and archives for the test servers of VOC and Cityscapes.
"""
