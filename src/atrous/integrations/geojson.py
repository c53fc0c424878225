"""Results as GeoJSON (RFC 7946): a MultiPolygon for each class, in pixels or in the coordinates of a map.

document = geojson.feature_collection(predictor("tile.tif"), transform=dataset.transform)  # rasterio's
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atrous.data.palette import is_background
from atrous.data.polygons import Ring
from atrous.prediction.segmentation import Segmentation


def feature_collection(
    result: Segmentation,
    *,
    tolerance: float = 1.0,
    transform: Sequence[float] = (1, 0, 0, 0, 1, 0),
    background: bool = False,
) -> dict[str, Any]:
    """A FeatureCollection with a feature for each class; its properties are those of `Segmentation.to_dict`.

    Args:
        result: of one photograph.
        tolerance: in pixels, see `Segmentation.polygons`.
        transform: a, b, c, d, e, f, ...: pixel x, y lies at a·x + b·y + c, d·x + e·y + f. The default gives pixels, y
            downwards from the upper left corner.
        background: include the class ``background``.

    Raises:
        ValueError: if the transform has fewer than six numbers or is not invertible.
    """
    if len(transform) < 6:
        raise ValueError(f"transform has {len(transform)} numbers; expected a, b, c, d, e, f")
    a, b, c, d, e, f = (float(value) for value in list(transform)[:6])
    if a * e == b * d:
        raise ValueError(f"transform {tuple(transform)[:6]} is not invertible; expected pixels to a plane")

    def line(ring: Ring) -> list[list[float]]:
        # RFC 7946 wants outer rings counterclockwise, which they are while x, y and the map turn the same way.
        ordered = ring if a * e > b * d else ring[::-1]
        points = [[a * x + b * y + c, d * x + e * y + f] for x, y in ordered.tolist()]
        return [*points, points[0]]

    described = {segment["label"]: segment for segment in result.to_dict(masks=None)["segments"]}
    features = [
        {
            "type": "Feature",
            "properties": described[name],
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[line(ring) for ring in (shape.outer, *shape.holes)] for shape in shapes],
            },
        }
        for name, shapes in result.polygons(tolerance).items()
        if background or not is_background(name)
    ]
    return {"type": "FeatureCollection", "features": features}
