"""What to choose a linear head's regularisation by: AUROCs of inner folds, or held-out loss. On val splits alone.

    python benchmarks/regularisation.py LABELS KEY_FILE RUN [RUN ...]

RUNs are of pretrain, with different seeds and the store beside them; LABELS has train and val.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medclr.commands.prepare import stocked
from medclr.data.identity import load_key
from medclr.data.labels import read_labels
from medclr.data.store import Store
from medclr.evaluation.efficiency import Arm, Scores, label_efficiency
from medclr.training.encode import embed_rows, load_encoder
from medclr.training.probe import STRENGTHS, choose, enough_to_choose, fit_linear, inner_folds

DRAWS = {0.01: 10, 0.05: 5, 0.1: 5, 0.3: 5}
RULES = ("AUROC of folds", "held-out loss")


def main(labels: Path, key_file: Path, runs: list[Path]) -> None:
    """Print both rules' AUROC on val at each share, and their paired difference."""
    features = []
    for run in runs:
        kept = stocked(run)
        assert kept
        manifest, spec = kept
        table = read_labels(labels, manifest, load_key(key_file))
        features.append(embed_rows(load_encoder(run).network, table.rows, Store(run.parent / "store"), spec))
    y, patients, train, val = table.y, table.rows["patient_key"].to_numpy(), table.of("train"), table.of("val")

    def arm(rule: str, x: NDArray[np.float32]) -> Arm:
        def scores(drawn: NDArray[np.intp], seed: int) -> Scores:
            at = train[drawn]

            def judge(strength: float, own: NDArray[np.intp], held: NDArray[np.intp]) -> NDArray[np.float64]:
                return fit_linear(x[at[own]], y[at[own]], patients[at[own]], seed, strength).scores(x[at[held]])

            strength = None
            if rule == RULES[0] and enough_to_choose(y[at], patients[at]).any():
                strength, _ = choose(STRENGTHS, judge, y[at], inner_folds(y[at], patients[at], seed))
            return Scores(fit_linear(x[at], y[at], patients[at], seed, strength).scores(x[val]), None)

        return scores

    arms = {rule: [arm(rule, x) for x in features] for rule in RULES}
    curve = label_efficiency(
        y[train], patients[train], y[val], patients[val], arms, DRAWS, 2000, 0, baselines=RULES[:1]
    )
    gaps = curve.differences[curve.differences["versus"] == RULES[0]].set_index("fraction")
    print("| share | " + " | ".join(RULES) + " | difference |\n|---|---|---|---|")
    for share, points in curve.points.groupby("fraction"):
        values = points.set_index("arm")["auroc"]
        gap = gaps.loc[share]
        print(
            f"| {share:.0%} | " + " | ".join(f"{values[rule]:.4f}" for rule in RULES) + f" | {gap['difference']:+.4f} "
            f"({gap['low']:+.4f} to {gap['high']:+.4f}) |"
        )


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(run) for run in sys.argv[3:]])
