"""What every augmentation is: parameters drawn for one item, then applied to a whole batch on the training device."""

from abc import abstractmethod

import numpy as np
import torch
from monai.transforms.transform import Randomizable, Transform
from monai.utils.type_conversion import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

Params = dict[str, NDArray[np.float32]]


class Augmentation(Randomizable, Transform):
    """A random transform whose drawing is separate from its applying.

    Some parameters mean "off": such an item passes untouched, bit for bit, and costs nothing. Used on one image, as in
    `monai.transforms.Compose`, a transform draws from MONAI's own random state.

    Attributes:
        probability: share of the items that it changes.
    """

    probability: float = 1.0

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Params:
        """The parameters of one item: float32 arrays of fixed shapes, a pure function of the generator."""

    @abstractmethod
    def extremes(self) -> tuple[Params, Params]:
        """The weakest and the strongest parameters that `draw` can give an item that is to be changed."""

    @abstractmethod
    def active(self, params: dict[str, Tensor]) -> Tensor:
        """(B,) bool: which items the parameters (B, ...) change."""

    @abstractmethod
    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """What `apply` does to the active items; never in place."""

    def apply(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Transform a float batch (B, C, *spatial) by parameters (B, ...); each item depends on its own alone."""
        index = self.active(params).nonzero()[:, 0]
        if len(index) == len(batch):
            return self.change(batch, params)
        if len(index) == 0:
            return batch
        return batch.index_copy(0, index, self.change(batch[index], pick(params, index)))

    def __call__(self, image: Tensor | NDArray[np.float32]) -> Tensor:
        """Transform one image (C, *spatial) at random.

        The result is a plain tensor: an affine in the metadata of a MetaTensor would no longer be true of it.
        """
        rng = np.random.default_rng(self.R.randint(2**31))
        params = {name: torch.from_numpy(value)[None] for name, value in self.draw(rng).items()}
        return self.apply(convert_to_tensor(image, dtype=torch.float32, track_meta=False)[None], params)[0]


def pick(params: dict[str, Tensor], items: Tensor | slice) -> dict[str, Tensor]:
    """The parameters of some items of a batch."""
    return {name: value[items] for name, value in params.items()}


def per_item(value: Tensor, batch: Tensor) -> Tensor:
    """A parameter (B,) shaped to broadcast over a batch (B, C, *spatial)."""
    return value.view(-1, *[1] * (batch.ndim - 1))


def scalar(value: float) -> NDArray[np.float32]:
    """One number as a parameter of one item, ()."""
    return np.array(value, np.float32)
