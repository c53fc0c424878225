"""A model as a file for another runtime: exports, int8, and the comparison before a file is written.

A new format is a file with the conversion, a class in `formats.py` and an entry of ``FORMATS`` there.
`atrous.models.exported` opens exported files as models.
"""
