"""One image or mask, from a file to an array and back.

- `image_io.py`: a whole image, as training and prediction see it; `row_io.py`: by rows, where it is large
- `image_file.py`: opens every file: formats that are allowed, limits of size, files that are cut short
- `samples.py`, `multiband.py`, `arrays.py`, `dicom.py`, `tiff_blocks.py`: scientific and medical images

A new format of files is an entry of `image_file.py` and, where Pillow does not read it, a file here.
"""
