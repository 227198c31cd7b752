"""Where a view looks: crop, zoom, rotation and flip in a single interpolation."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medclr.transforms.augmentation import Augmentation, Params, pick

# Axes that each rotation turns: about the normal in 2D, about axis 0, 1 and 2 by the right-hand rule in 3D.
_PLANES = {2: [(0, 1)], 3: [(1, 2), (2, 0), (0, 1)]}


class ResizedCrop(Augmentation):
    """Cut a turned, perhaps mirrored box out of each block and resize it.

    The box lies inside the block before it is turned about its own centre; what turning brings in from outside
    repeats the block's border. Rotation is in voxels, so anisotropic spacing shears a little at these angles.

    Args:
        spatial_dims: 2 or 3.
        size: voxels along each axis of the result; None: the block's own.
        scale: smallest and largest share of the block's area or volume that the box takes.
        ratio: largest ratio between the shares that the box takes along two axes; 1 keeps the block's proportions.
        rotation_deg: largest angle, either way; in 3D about each axis.
        turned: share of the views that are rotated.
        flips: per spatial axis, whether it may be mirrored (then half of the views are).
    """

    def __init__(
        self,
        spatial_dims: int,
        size: tuple[int, ...] | None = None,
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: float = 1.25,
        rotation_deg: float = 10.0,
        turned: float = 1.0,
        flips: tuple[bool, ...] | None = None,
    ) -> None:
        self.spatial_dims = spatial_dims
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.rotation_deg = rotation_deg
        self.turned = turned
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
        u = rng.random(2 + 3 * dims + len(_PLANES[dims])).tolist()
        low, high = self.scale
        log_side = math.log(low + (high - low) * u[0]) / dims
        stretch = u[1 : 1 + dims]
        mean, most = sum(stretch) / dims, max(stretch)
        # Where the box nearly fills the block, no side has room to grow: less stretch keeps the drawn share.
        factor = min(math.log(self.ratio), -log_side / max(most - mean, 1e-9))
        size = [min(1.0, math.exp(log_side + factor * (value - mean))) for value in stretch]
        centre = [s / 2 + (1 - s) * v for s, v in zip(size, u[1 + dims :], strict=False)]
        mirror = [allowed and v < 0.5 for allowed, v in zip(self.flips, u[1 + 2 * dims :], strict=False)]
        most_deg = self.rotation_deg if u[-1] < self.turned else 0.0
        return _params(dims, centre, size, mirror, [most_deg * (2 * v - 1) for v in u[1 + 3 * dims : -1]])

    def extremes(self) -> tuple[Params, Params]:
        """The largest box, in the middle, upright; the smallest, in a corner, turned the whole way and mirrored."""
        dims = self.spatial_dims
        small, large = (share ** (1 / dims) for share in self.scale)
        angles = len(_PLANES[dims])
        weakest = _params(dims, [0.5] * dims, [large] * dims, [False] * dims, [0.0] * angles)
        turn = self.rotation_deg if self.turned > 0 else 0.0
        return weakest, _params(dims, [small / 2] * dims, [small] * dims, self.flips, [turn] * angles)

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """All where the result has a size of its own; else those that do not show the whole block as it is."""
        still = (params["size"] == 1).all(1) & ~params["flip"].any(1) & ~params["rotation_deg"].any(1)
        return ~still if self.size is None else torch.ones_like(still)

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Resample every item once, linearly; float (B, C, *spatial) in, (B, C, *size) out."""
        size = self.size or tuple(batch.shape[2:])
        if batch.device.type != "cpu":
            return _gridded(batch, params, size)
        turned = params["rotation_deg"].any(dim=1)
        out = batch.new_empty(*batch.shape[:2], *size)
        for items, resample in ((turned, _turned), (~turned, _upright)):
            index = items.nonzero()[:, 0]
            if len(index) == len(batch):
                return resample(batch.contiguous(), params, size)
            if len(index):
                out[index] = resample(batch[index], pick(params, index), size)
        return out


def _params(dims: int, centre: object, size: object, flip: object, rotation_deg: object) -> Params:
    drawn = np.array([*centre, *size, *flip, *rotation_deg], np.float32)  # type: ignore[misc]
    return {
        "centre": drawn[:dims],
        "size": drawn[dims : 2 * dims],
        "flip": drawn[2 * dims : 3 * dims],
        "rotation_deg": drawn[3 * dims :],
    }


def _affine(shape: tuple[int, ...], params: dict[str, Tensor]) -> Tensor:
    """Matrices (B, D, D + 1) from output to input, where both axes run from -1 to 1 between the outer faces."""
    sides = torch.tensor(shape, dtype=torch.float32, device=params["size"].device)
    # In voxels about the centre of the box: mirror, shrink to the box, then turn.
    turn = _rotation(params["rotation_deg"], len(shape))
    reach = sides * params["size"] * (1 - 2 * params["flip"])
    matrix = turn * reach[:, None, :] / sides[None, :, None]
    return torch.cat([matrix, (2 * params["centre"] - 1)[..., None]], dim=2)


def _gridded(batch: Tensor, params: dict[str, Tensor], size: tuple[int, ...]) -> Tensor:
    """Resample by torch's own kernel, which names axes from the last to the first."""
    matrix = _affine(tuple(batch.shape[2:]), params)
    theta = torch.cat([matrix[:, :, :-1].flip(1, 2), matrix[:, :, -1:].flip(1)], dim=2)
    grid = F.affine_grid(theta, [*batch.shape[:2], *size], align_corners=False)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _turned(batch: Tensor, params: dict[str, Tensor], size: tuple[int, ...]) -> Tensor:
    """Resample on the CPU, where torch's kernel for planes is several times quicker than its kernel for volumes.

    The slices of a volume are laid below one another as one tall plane, and a second channel is that plane from the
    second slice on: one look-up in both gives the two neighbours along axis 0, still to be mixed. Places are off by up
    to D * H * 2^-22 voxels of rounding, four thousandths at 128 x 128.
    """
    n, channels, *shape = batch.shape
    if len(shape) == 2 or shape[0] < 2 or shape[0] * shape[1] > 2**16:
        return _gridded(batch, params, size)
    depth, height, width = shape
    matrix = _affine((depth, height, width), params)
    steps = [((torch.arange(side) * 2 + 1) / side - 1) for side in size]

    def place(axis: int, unit: float, origin: float) -> tuple[Tensor, Tensor]:
        """Voxel numbers along an axis, times a unit, from an origin, as a plane of axes 0 and 1 and a line to add."""
        by = matrix[:, axis] * (shape[axis] / 2 * unit)
        start = by[:, 3] + (shape[axis] - 1) / 2 * unit + origin
        plane = (by[:, 0, None] * steps[0])[:, :, None] + (by[:, 1, None] * steps[1])[:, None] + start[:, None, None]
        return plane[..., None], (by[:, 2, None] * steps[2])[:, None, None]

    rows = (depth - 1) * height
    grid = batch.new_empty(n, 2, *size)  # each coordinate by itself: the kernel takes it so, and it is made in one go
    torch.add(*place(2, 2 / width, 1 / width - 1), out=grid[:, 0])
    share = torch.add(*place(0, 1, 0)).clamp_(0, depth - 1)
    below = share.floor().clamp_(max=depth - 2)
    share -= below
    unit, origin = 2 / rows, 1 / rows - 1
    rounding = 2.0**-22  # which must not reach into the slice beside
    within = torch.add(*place(1, unit, origin)).clamp_(origin + rounding, (height - 1) * unit + origin - rounding)
    torch.add(within, below, alpha=height * unit, out=grid[:, 1])
    grid = grid.view(n, 2, size[0] * size[1], size[2]).permute(0, 2, 3, 1)
    out = batch.new_empty(n, channels, *size)
    for c in range(channels):
        pair = batch[:, c].as_strided((n, 2, rows, width), (batch.stride(0), height * width, width, 1))
        lower, upper = (
            F.grid_sample(pair, grid, mode="bilinear", padding_mode="border", align_corners=False)
            .view(n, 2, *size)
            .unbind(1)
        )
        torch.lerp(lower, upper, share, out=out[:, c])
    return out


def _upright(batch: Tensor, params: dict[str, Tensor], size: tuple[int, ...]) -> Tensor:
    """Resample axis by axis, which is the same where nothing is turned; each result is a sum of two neighbours."""
    n, *rest = batch.shape
    dims = len(size)
    for axis in range(dims):
        length, after = rest[1 + axis], math.prod(rest[2 + axis :])
        line = (torch.arange(size[axis]) + 0.5) / size[axis] - 0.5
        reach = params["size"][:, axis] * (1 - 2 * params["flip"][:, axis]) * length
        place = line * reach[:, None] + (params["centre"][:, axis, None] * length - 0.5)
        place.clamp_(0, length - 1)
        low = place.floor()
        share = place - low
        low = low.long()
        pair = torch.stack([low, (low + 1).clamp_(max=length - 1)], dim=-1)
        weights = torch.stack([1 - share, share], dim=-1)
        before = math.prod(rest[: 1 + axis])
        if axis == dims - 1:
            # Rows of one voxel are too short to be summed: a product with a nearly empty matrix is quicker.
            matrix = batch.new_zeros(n, size[axis], length).scatter_add_(2, pair, weights)
            batch = batch.reshape(n, before, length) @ matrix.mT
        else:
            first = torch.arange(n * before).view(n, before, 1, 1) * length
            index = (first + pair[:, None]).view(-1, 2)
            weights = weights[:, None].expand(n, before, size[axis], 2).reshape(-1, 2)
            batch = F.embedding_bag(
                index, batch.reshape(n * before * length, after), mode="sum", per_sample_weights=weights
            )
        rest[1 + axis] = size[axis]
    return batch.view(n, *rest)


def _rotation(degrees: Tensor, dims: int) -> Tensor:
    """Rotation matrices (B, D, D) over the spatial axes in order, composed as MONAI's `Affine` does."""
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    columns = list(torch.eye(dims, device=degrees.device).expand(len(degrees), dims, dims).unbind(2))
    for k, (i, j) in enumerate(_PLANES[dims]):
        c, s = cos[:, k, None], sin[:, k, None]
        columns[i], columns[j] = columns[i] * c + columns[j] * s, columns[j] * c - columns[i] * s
    return torch.stack(columns, dim=2)
