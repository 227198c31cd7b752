"""The cells of a label-efficiency grid: every arm at every fraction, draw and encoder, run once each."""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from medclr.data.labels import nested_draws
from medclr.errors import DataError
from medclr.metrics import label_aurocs

LEAST_PATIENTS = 5
PROTOCOL = 2  # to be raised where the same draw gives another result, so that no run mixes the two


class Scores(NamedTuple):
    """What an arm returns.

    Attributes:
        test: (m, K) logits of all test rows.
        held_out: (n, K) logits of the drawn rows, each from a fit without any row of its patient; None where the arm
            makes none.
        choice: what the arm chose inside the draw, such as "C = 0.1".
        reason: why there is no result, whatever `test` is; "" where there is one.
    """

    test: np.ndarray
    held_out: np.ndarray | None
    choice: str = ""
    reason: str = ""


Arm = Callable[[np.ndarray, int], Scores]
"""A way of making a classifier from one encoder: (positions of the training rows to use, seed) -> Scores."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One arm at one fraction, draw and encoder.

    `n_positive` and `n_negative` count volumes with any positive label and with none; of several classes they are None.
    `auroc` is the mean over the outputs that the test set can judge (`unjudged`). Where there is no result, `reason`
    says why, `auroc` is NaN and `scores` is None. `data` identifies the labels and patients behind the cell, so that
    it is never taken for a result on others; and the protocol by which it was made.
    """

    arm: str
    fraction: float
    draw: int
    encoder: int
    n_patients: int
    n_positive: int | None
    n_negative: int | None
    auroc: float
    scores: np.ndarray | None
    held_out: np.ndarray | None
    choice: str
    reason: str
    seconds: float
    data: str = ""

    @property
    def id(self) -> str:
        return f"{self.arm}|{self.fraction:.15g}|{self.draw}" + (f"|{self.encoder}" if self.encoder else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with null for NaN; `from_dict` gives the same cell back, to the bit."""
        return {
            **asdict(self),
            "auroc": None if math.isnan(self.auroc) else self.auroc,
            "scores": None if self.scores is None else self.scores.tolist(),
            "held_out": None if self.held_out is None else self.held_out.tolist(),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Cell":
        arrays = {
            name: None if stored[name] is None else np.array(stored[name], dtype=np.float64)
            for name in ("scores", "held_out")
        }
        return cls(**{**stored, **arrays, "auroc": math.nan if stored["auroc"] is None else stored["auroc"]})


def drawn(
    y: np.ndarray, patients: np.ndarray, n_draws: Mapping[float, int], seed: int
) -> dict[tuple[float, int], np.ndarray]:
    """Positions of the training rows of each fraction's draws, the smaller within the larger."""
    draws = nested_draws(y, patients, sorted(n_draws), max(n_draws.values()), seed)
    return {
        (fraction, draw): draws[fraction, draw] for fraction in sorted(n_draws) for draw in range(n_draws[fraction])
    }


def run_cells(
    y_train: np.ndarray,
    patients_train: np.ndarray,
    y_test: np.ndarray,
    patients_test: np.ndarray,
    arms: Mapping[str, Sequence[Arm]],
    draws: Mapping[tuple[float, int], np.ndarray],
    seed: int,
    kind: str,
    done: Mapping[str, Cell],
    on_cell: Callable[[Cell], None],
    pool: Executor | None,
) -> list[Cell]:
    """All cells, by fraction, draw, arm and encoder; see `label_efficiency` for what it is given."""
    judged = [not reason for reason in unjudged(y_test, patients_test)]
    cells: dict[str, Cell] = {}
    todo: list[tuple[Cell, Arm, np.ndarray]] = []
    for (fraction, draw), rows in draws.items():
        positive = (y_train[rows] == 1).any(axis=1)
        known = ~np.isnan(y_train[rows]).all(axis=1)
        draft = Cell(
            arm="",
            fraction=fraction,
            draw=draw,
            encoder=0,
            n_patients=len(np.unique(patients_train[rows])),
            n_positive=None if kind == "multiclass" else int(positive.sum()),
            n_negative=None if kind == "multiclass" else int((known & ~positive).sum()),
            auroc=math.nan,
            scores=None,
            held_out=None,
            choice="",
            reason=_cannot_judge(y_test, patients_test) or _cannot_learn(y_train[rows]),
            seconds=0.0,
            data=_digest(y_train[rows], patients_train[rows], y_test, patients_test),
        )
        for name, encoders in arms.items():
            for encoder, arm in enumerate(encoders):
                cell = replace(draft, arm=name, encoder=encoder)
                cells[cell.id] = cell
                if cell.id in done:
                    if done[cell.id].data != cell.data:
                        raise DataError(
                            f"cell {cell.id} was made with other labels or patients, or by another version of medclr; "
                            "use another --out"
                        )
                    cells[cell.id] = done[cell.id]
                elif cell.reason:
                    on_cell(cell)
                else:
                    todo.append((cell, arm, rows))
    with closing(_run(todo, seed, pool)) as finished:
        for cell, scores, seconds in finished:
            cells[cell.id] = _filled(cell, scores, seconds, y_test[:, judged], judged)
            on_cell(cells[cell.id])
    return list(cells.values())


def unjudged(y: np.ndarray, patients: np.ndarray) -> list[str]:
    """Why a test set cannot judge an output, one reason for each column of y (m, K); "" where it can.

    It takes 5 patients with a positive and 5 with a negative: an AUROC of fewer would come with an interval that looks
    certain, as resamples of so few vary too little.
    """
    return [_few(column, patients) for column in y.T]


def _few(y: np.ndarray, patients: np.ndarray) -> str:
    for value, word in ((1, "positive"), (0, "negative")):
        count = len(np.unique(patients[y == value]))
        if not count:
            return f"no {word}"
        if count < LEAST_PATIENTS:
            return f"only {count} patient{'s' if count > 1 else ''} with a {word} (fewer than {LEAST_PATIENTS})"
    return ""


def _cannot_judge(y: np.ndarray, patients: np.ndarray) -> str:
    reasons = unjudged(y, patients)
    if not all(reasons):
        return ""
    return f"the test set of {len(y)} volumes holds {reasons[0]}" + (" of any output" if len(reasons) > 1 else "")


def _cannot_learn(y: np.ndarray) -> str:
    has = {word: (y == value).any(axis=0) for value, word in ((1, "positive"), (0, "negative"))}
    if (has["positive"] & has["negative"]).any():
        return ""
    if y.shape[1] > 1:
        return f"the draw of {len(y)} volumes holds no two classes"
    return f"the draw of {len(y)} volumes holds no {'positive' if not has['positive'].any() else 'negative'}"


def _digest(*columns: np.ndarray) -> str:
    text = "\n\n".join([str(PROTOCOL), *("\n".join(map(str, column.tolist())) for column in columns)])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _run(
    todo: Sequence[tuple[Cell, Arm, np.ndarray]], seed: int, pool: Executor | None
) -> Generator[tuple[Cell, Scores, float]]:
    # Seeds far apart, so that runs under neighbouring ones share none; all arms and encoders have those of the draw.
    if pool is None:
        for cell, arm, rows in todo:
            yield (cell, *_timed(arm, rows, 1000 * seed + cell.draw))
        return
    cell_of: dict[Future[tuple[Scores, float]], Cell] = {}
    failed: BaseException | None = None
    try:
        try:
            for cell, arm, rows in todo:
                cell_of[pool.submit(_timed, arm, rows, 1000 * seed + cell.draw)] = cell
        except Exception as error:  # a worker that dies meanwhile; what others finished is still handed on
            failed = error
        pending = set(cell_of)
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                if failure := future.exception():
                    failed = failed or failure
                else:
                    yield (cell_of[future], *future.result())
            if failed:
                pending = {future for future in pending if not future.cancel()}
    finally:
        # Also where the caller fails, or is stopped.
        for future in cell_of:
            future.cancel()
    if failed:
        raise failed


def _timed(arm: Arm, rows: np.ndarray, seed: int) -> tuple[Scores, float]:
    start = time.perf_counter()
    scores = arm(rows, seed)
    return scores, time.perf_counter() - start


def _filled(cell: Cell, scores: Scores, seconds: float, y_test: np.ndarray, judged: Sequence[bool]) -> Cell:
    cell = replace(cell, seconds=seconds, choice=scores.choice)
    if scores.reason:
        return replace(cell, reason=scores.reason)
    test = np.asarray(scores.test, dtype=np.float64)
    if not np.isfinite(test).all():
        return replace(cell, reason="training diverged: scores are not finite")
    held_out = None if scores.held_out is None else np.asarray(scores.held_out, dtype=np.float64)
    return replace(cell, scores=test, held_out=held_out, auroc=label_aurocs(y_test, test[:, judged]).mean)
