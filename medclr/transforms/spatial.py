"""Where a view looks: crop, zoom, rotation and flip in a single interpolation."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medclr.transforms.augmentation import Augmentation, Params

# Axes that each rotation turns: about the normal in 2D, about axis 0, 1 and 2 by the right-hand rule in 3D.
_PLANES = {2: [(0, 1)], 3: [(1, 2), (2, 0), (0, 1)]}


class ResizedCrop(Augmentation):
    """Cut a turned, perhaps mirrored box out of each block and resize it to the block's own size.

    The box lies inside the block before it is turned about its own centre; what turning brings in from outside
    repeats the block's border. Rotation is in voxels, so anisotropic spacing shears a little at these angles.

    Args:
        spatial_dims: 2 or 3.
        scale: smallest and largest share of the block's area or volume that the box takes.
        ratio: largest ratio between the shares that the box takes along two axes; 1 keeps the block's proportions.
        rotation_deg: largest angle, either way; in 3D about each axis.
        flips: per spatial axis, whether it may be mirrored (then half of the views are).
    """

    def __init__(
        self,
        spatial_dims: int,
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: float = 1.25,
        rotation_deg: float = 10.0,
        flips: tuple[bool, ...] | None = None,
    ) -> None:
        self.spatial_dims = spatial_dims
        self.scale = scale
        self.ratio = ratio
        self.rotation_deg = rotation_deg
        self.flips = flips or (False,) * spatial_dims

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item.

        Returns:
            centre: (D,) of the box, as a share of the block along each axis.
            size: (D,) of the box, likewise; centre - size / 2 >= 0 and centre + size / 2 <= 1.
            flip: (D,) 1 where the axis is mirrored, else 0.
            rotation_deg: (1,) in 2D, (3,) in 3D.
        """
        dims = self.spatial_dims
        # One call for all: numbers are cheap in numpy, calls are not.
        u = rng.random(1 + 3 * dims + len(_PLANES[dims])).tolist()
        low, high = self.scale
        log_side = math.log(low + (high - low) * u[0]) / dims
        stretch = u[1 : 1 + dims]
        mean, most = sum(stretch) / dims, max(stretch)
        # Where the box nearly fills the block, no side has room to grow: less stretch keeps the drawn share.
        factor = min(math.log(self.ratio), -log_side / max(most - mean, 1e-9))
        size = [min(1.0, math.exp(log_side + factor * (value - mean))) for value in stretch]
        centre = [s / 2 + (1 - s) * v for s, v in zip(size, u[1 + dims :], strict=False)]
        mirror = [allowed and v < 0.5 for allowed, v in zip(self.flips, u[1 + 2 * dims :], strict=False)]
        rotation = [self.rotation_deg * (2 * v - 1) for v in u[1 + 3 * dims :]]
        drawn = np.array([*centre, *size, *mirror, *rotation], np.float32)
        return {
            "centre": drawn[:dims],
            "size": drawn[dims : 2 * dims],
            "flip": drawn[2 * dims : 3 * dims],
            "rotation_deg": drawn[3 * dims :],
        }

    def apply(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Resample every item once, linearly; float (B, C, *spatial) in, the same shape out."""
        shape = torch.tensor(batch.shape[2:], dtype=torch.float32, device=batch.device)
        # From output to input, in voxels about the centre of the box: mirror, shrink to the box, then turn.
        turn = _rotation(params["rotation_deg"], self.spatial_dims)
        reach = shape * params["size"] * (1 - 2 * params["flip"])
        matrix = turn * reach[:, None, :] / shape[None, :, None]
        theta = torch.cat([matrix.flip(1, 2), (2 * params["centre"] - 1).flip(1)[..., None]], dim=2)
        grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
        return F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _rotation(degrees: Tensor, dims: int) -> Tensor:
    """Rotation matrices (B, D, D) over the spatial axes in order, composed as MONAI's `Affine` does."""
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    total = torch.eye(dims, device=degrees.device).repeat(len(degrees), 1, 1)
    for k, (i, j) in enumerate(_PLANES[dims]):
        turn = torch.eye(dims, device=degrees.device).repeat(len(degrees), 1, 1)
        turn[:, i, i] = turn[:, j, j] = cos[:, k]
        turn[:, i, j], turn[:, j, i] = -sin[:, k], sin[:, k]
        total = total @ turn
    return total
