"""Writers of data sets in the formats of labelling tools, a file for each: ``atrous data convert --to``.

A new one is a file with a `Writer` (`base.py`) and an entry of ``WRITERS`` in `atrous.data.convert`. One result of a
predictor goes to a tool by `atrous.integrations`.
"""
