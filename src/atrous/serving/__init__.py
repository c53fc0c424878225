"""The HTTP server (`app.py`), its page (`page/`) and the protocols that it speaks, one file each."""
