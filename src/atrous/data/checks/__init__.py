"""``atrous data check``: what is wrong with a data set, found before a training.

- `examine.py` looks at each image and mask, in several processes
- `findings.py` says what is wrong, and the line that mends it; a new check goes there
- `validate.py` is the whole check; `report.py` words it, `page.py` draws it as HTML
"""
