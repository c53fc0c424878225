"""Asynchronous training with a parameter server (appendix B, Table 11): `server.py`, and the replicas that it has."""
