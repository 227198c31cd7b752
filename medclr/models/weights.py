"""Weights from elsewhere: read without running code, and all of them or none."""

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medclr.errors import BundleError, UsageError
from medclr.models.named import Named

_NESTS = ("state_dict", "model_state_dict", "model", "network", "net")
_COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch checkpoint, by their names.

    Raises:
        UsageError: there is no such file.
        BundleError: it holds no tensors, or more than `torch.load(weights_only=True)` reads.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file")
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except SafetensorError as error:
        raise BundleError(f"--weights {path}: not a safetensors file; copy it again") from error
    # Of a damaged file each of these may be the first thing that the unpickler meets.
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, struct.error) as error:
        raise BundleError(
            f"--weights {path}: not a checkpoint of tensors alone, and others can run code when they are read; where "
            "you trust it, save its state_dict() with safetensors.torch.save_file"
        ) from error
    while isinstance(found, Mapping) and (inner := next((n for n in _NESTS if isinstance(found.get(n), Mapping)), "")):
        found = found[inner]
    named = found if isinstance(found, Mapping) else {}
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise BundleError(f"--weights {path}: holds no tensors by name; save the state_dict() of the network")
    return tensors


def fit_weights(network: nn.Module, given: Mapping[str, Tensor], inflate: int | None = None) -> list[str]:
    """Give a network its weights, every one of them.

    Names may have any one prefix, such as "module.encoder.", and parts may be numbered in them, as by
    nn.Sequential(*network.children()); a head, or other parts that the network does not have, are left out. Where it
    has one input channel and the stem was trained on several, that is summed over them: a grey image is then seen as
    one whose channels are equal.

    A 3D network can be given the weights of a 2D one, inflated (Carreira and Zisserman 2017, section 2): each of its
    convolutions is repeated along an axis and divided by how often, so that a volume which is the same plane all along
    that axis gives what the plane gives in 2D, but for the zeros beyond its ends.

    Args:
        network: as built; of a network of another library, its body.
        given: tensors by name.
        inflate: the spatial axis, from 0, along which convolutions are repeated; None where they are as they should be.

    Returns:
        What was changed on the way, in words.

    Raises:
        BundleError: some are missing, of another shape or not finite, or there are others within the network.
    """
    body, heads = (network.body, network.heads) if isinstance(network, Named) else (network, ())
    weights, names = body.state_dict(), _names(body, given)
    wanted: dict[str, Tensor] = {name: weights[own] for name, own in names.items()}
    said = []
    prefix = _prefix(wanted, given)
    own = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
    if not wanted.keys() & own.keys():
        raise BundleError(
            f"not one of its {len(given)} names is of this network: it has {_some(list(given))}, and wanted are "
            f"{_some(list(wanted))}"
        )
    fitted: dict[str, Tensor] = {}
    n_inflated = 0
    faults: dict[str, list[str]] = {"missing": [], "of another shape": [], "not finite": []}
    for name, like in wanted.items():
        tensor = own.get(name)
        if tensor is None and name.endswith(_COUNTER):
            tensor = torch.zeros_like(like)
        if tensor is None:
            faults["missing"].append(prefix + name)
            continue
        if inflate is not None and (tensor.ndim, like.ndim) == (4, 5):
            depth, n_inflated = like.shape[2 + inflate], n_inflated + 1
            tensor = tensor.float().unsqueeze(2 + inflate).repeat_interleave(depth, 2 + inflate) / depth
        if _is_stem_of_more(tensor, like):
            said.append(f"its stem, trained on {tensor.shape[1]} channels, was summed over them")
            tensor = tensor.sum(1, keepdim=True)
        if tensor.shape != like.shape:
            faults["of another shape"].append(f"{name} {list(tensor.shape)} for {list(like.shape)}")
        elif not tensor.isfinite().all():
            faults["not finite"].append(name)
        else:
            fitted[name] = tensor.to(like.dtype)
    parts = {name.partition(".")[0] for name in wanted}
    rest = [name for name in own if name not in wanted]
    left = [name for name in rest if _of(heads, name) or name.partition(".")[0] not in parts]
    faults["unexpected"] = [name for name in rest if name not in left]
    if found := [f"{len(items)} {what}: {_some(items)}" for what, items in faults.items() if items]:
        raise BundleError(f"{count(fitted)} of {count(wanted)} weights fit; {'; '.join(found)}")
    if inflate is not None:
        if not n_inflated:
            raise BundleError("none of its convolutions is of a 2D network, so there is nothing to inflate")
        said.append(f"its {n_inflated} convolutions, trained in 2D, were repeated along an axis and divided by as many")
    body.load_state_dict({names[name]: tensor for name, tensor in fitted.items()})
    if prefix:
        said.append(f"names lost their prefix {prefix[:-1]}")
    if any(name != own for name, own in names.items()):
        said.append("its parts, by number in the file, were named by their order")
    if left:
        said.append(f"left out: {', '.join(sorted({name.partition('.')[0] for name in left}))}")
    return said


def count(names: Iterable[str]) -> int:
    """How many of them are weights: a counter of batch norm, which old checkpoints lack and nothing reads, is none."""
    return sum(not name.endswith(_COUNTER) for name in names)


def _names(body: nn.Module, given: Mapping[str, Tensor]) -> dict[str, str]:
    """What the weights are called in the file, without a prefix, and in the network.

    That is the same, but where most are found with the parts by number, and more than by name.
    """
    named = {name: name for name in body.state_dict()}
    numbers = {part: str(number) for number, (part, _) in enumerate(body.named_children())}
    numbered = {}
    for name in named:
        part, dot, rest = name.partition(".")
        numbered[numbers.get(part, part) + dot + rest] = name
    n_named, n_numbered = (max(_prefixes(names, given).values(), default=0) for names in (named, numbered))
    return numbered if n_numbered > max(n_named, len(named) // 2) else named


def _prefixes(wanted: Mapping[str, object], given: Mapping[str, Tensor]) -> Counter[str]:
    """How many of the names are found under which prefix."""
    counts: Counter[str] = Counter()
    for name in given:
        starts = [0, *(at + 1 for at, char in enumerate(name) if char == ".")]
        counts.update(name[:at] for at in starts if name[at:] in wanted)
    return counts


def _prefix(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Under which most of the names are found."""
    counts = _prefixes(wanted, given)
    if not counts:
        return ""
    (best, n), *others = counts.most_common()
    if others and others[0][1] == n > len(wanted) // 2:
        raise BundleError(
            f"there are several such networks, as {best} and as {others[0][0]}; save the weights of one of them alone"
        )
    return best


def _of(heads: tuple[str, ...], name: str) -> bool:
    return name.startswith(tuple(f"{head}." for head in heads))


def _is_stem_of_more(tensor: Tensor, like: Tensor) -> bool:
    one = like.ndim > 2 and like.shape[1] == 1 and tensor.ndim == like.ndim
    return one and tensor.shape[1] > 1 and (tensor.shape[0], *tensor.shape[2:]) == (like.shape[0], *like.shape[2:])


def _some(items: list[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (", …" if len(items) > most else "")
