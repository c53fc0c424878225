"""Readers of data sets, a file for each layout or labelling tool.

A new layout is a file with a ``LAYOUT`` (`base.py` says what it must do) and an entry of ``LAYOUTS`` in `layouts.py`,
which recognises layouts. `dataset.py` opens a split. The others are helpers of the readers.
"""
