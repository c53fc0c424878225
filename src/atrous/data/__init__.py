"""Images, masks and data sets, from files to tensors.

- `image_io.py`, `image_file.py`, `row_io.py`: one image or mask, whole or by rows
- `datasets/`: reads data sets, a file for each layout; `layouts.py` lists them
- `writers/`: writes data sets in the formats of labelling tools
- `transforms.py`, `sampling.py`: augmentation, and which images an epoch shows more than once
- `validate.py`, `examine.py`, `findings.py`, `report.py`, `check_page.py`: ``atrous data check``
- `sheet.py`, `overlay.py`, `palette.py`: pictures for people; `convert.py`, `source.py`: ``atrous data convert``
"""
