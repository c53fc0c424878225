"""Images, masks and data sets, from files to tensors.

- `images/`: one image or mask, whole or by rows, of photographs and of scientific images
- `datasets/`: reads data sets, a file for each layout; `layouts.py` lists them
- `writers/`: writes data sets in the formats of labelling tools
- `transforms.py`, `sampling.py`: augmentation, and which images an epoch shows more than once
- `checks/`: ``atrous data check``
- `sheet.py`, `overlay.py`, `palette.py`: pictures for people; `convert.py`, `source.py`: ``atrous data convert``
"""
