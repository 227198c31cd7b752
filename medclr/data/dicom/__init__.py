"""One DICOM series -> Volume, by geometry; a radiograph is a volume of one plane.

The unit is the plane: a file, a frame of an enhanced multi-frame image, or a tile of a Siemens mosaic. `headers`
tells the planes of one file without decoding them, `group` makes candidates of the planes of many, `read` makes one
candidate a volume.
"""

from medclr.data.dicom.header import PLANES, Header, beginning, headers
from medclr.data.dicom.pixels import read, same_pixels
from medclr.data.dicom.series import Tilt, Uneven, group

__all__ = ["PLANES", "Header", "Tilt", "Uneven", "beginning", "group", "headers", "read", "same_pixels"]
