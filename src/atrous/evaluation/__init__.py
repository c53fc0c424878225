"""How good a model is: the pass over a data set (`evaluate.py`) and the scores (`metrics.py`, where a new metric goes).

`preprocessor.py` resizes and normalises, for evaluation and prediction alike.
"""
