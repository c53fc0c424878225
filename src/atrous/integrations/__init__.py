"""One result of a predictor (`Segmentation`) in the form that another tool takes, a file for each tool.

Whole data sets are read by `atrous.data.datasets` and written by `atrous.data.writers`.
"""
