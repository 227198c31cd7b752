"""The page of an arm's worst errors: images of test patients, for `private/` alone.

Of the headers it shows nothing: a volume is named by its pseudonym.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medclr.data.spec import DataSpec
from medclr.reporting.caption import pictures
from medclr.reporting.html import TEMPLATES


@dataclass(frozen=True)
class Example:
    """One volume that was judged wrongly.

    Attributes:
        row: of the manifest, after `prepare`, as a named tuple.
        image: float32 (*spatial) in [0, 1], what the network sees at the centre, of the first channel.
        probability: of a positive, the mean over draws and encoders.
        low, high: the least and the most of any of these.
        label: what the volume truly is, in words.
    """

    row: Any
    image: NDArray[np.float32]
    probability: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Section:
    """The errors of one output; the worst first."""

    output: str
    false_positives: Sequence[Example]
    false_negatives: Sequence[Example]


def examples_page(sections: Sequence[Section], spec: DataSpec, context: Mapping[str, Any]) -> str:
    """The errors as HTML.

    Args:
        sections: one for each output.
        spec: by which the volumes were prepared.
        context: arm, fraction, n_cells (draws and encoders behind a probability), crops (most that judge a volume),
            command_line, versions and hardware.
    """
    return TEMPLATES.get_template("examples.html").render(
        context,
        title=f"Errors of {context['arm']}",
        machine={**context["versions"], **context["hardware"]},
        spec=spec,
        sections=[
            {
                "output": section.output,
                "sides": [
                    (name, [_sheet(spec, example, name) for example in examples])
                    for name, examples in (
                        ("False positives", section.false_positives),
                        ("False negatives", section.false_negatives),
                    )
                ],
            }
            for section in sections
        ],
    )


def _sheet(spec: DataSpec, example: Example, name: str) -> dict[str, Any]:
    what = f"{name.lower().removesuffix('s')}, probability {example.probability:.3f}"
    return {"example": example, "pictures": pictures(spec, example.row.spacing_mm, example.image, what)}
