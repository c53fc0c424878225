"""The command line: `parser.py` has `main`, the commands and their flags; a large command has a file of its own.

A command calls one function of the package and shows what comes back. Tables and progress go to standard error; the
result, and with ``--json`` one JSON object, to standard output. A new flag goes beside its command, and into the list
of ``tests/test_public.py``.
"""
