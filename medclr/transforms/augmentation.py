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

    Used on one image, as in `monai.transforms.Compose`, it draws from MONAI's own random state.
    """

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Params:
        """The parameters of one item: float32 arrays of fixed shapes, a pure function of the generator."""

    @abstractmethod
    def apply(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Transform a float batch (B, C, *spatial) by parameters (B, ...); each item depends on its own alone."""

    def __call__(self, image: Tensor | NDArray[np.float32]) -> Tensor:
        """Transform one image (C, *spatial) at random.

        The result is a plain tensor: an affine in the metadata of a MetaTensor would no longer be true of it.
        """
        rng = np.random.default_rng(self.R.randint(2**31))
        params = {name: torch.from_numpy(value)[None] for name, value in self.draw(rng).items()}
        return self.apply(convert_to_tensor(image, dtype=torch.float32, track_meta=False)[None], params)[0]


def per_item(value: Tensor, batch: Tensor) -> Tensor:
    """A parameter (B,) shaped to broadcast over a batch (B, C, *spatial)."""
    return value.view(-1, *[1] * (batch.ndim - 1))
