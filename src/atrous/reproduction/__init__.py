"""The paper's tables and figures, trained again beside its numbers.

A new table is an entry of ``GRIDS`` in `specs.py`: its cells, what each changes in the base recipe, the paper's mIoU.
"""
