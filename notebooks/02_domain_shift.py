# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What does a classifier lose on another scanner, and what brings it back?
#
# Phantoms on two scanners: labels come from one, the classifier is used on the other. Everything runs on two CPU cores
# in a few minutes. With your own scans, replace `phantoms/dicom` and `phantoms/labels.csv`, and name your own domain.

# %%
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd
from IPython.display import SVG

import medclr

folder = Path(mkdtemp())
key = folder / "key"

# %% [markdown]
# ## Scans, an encoder and a classifier
#
# Pre-training needs no label, and sees both scanners. The classifier learns from the train split.

# %%
medclr.write_phantoms(folder / "phantoms", patients=80, seed=0)
data, labels = folder / "phantoms" / "dicom", folder / "phantoms" / "labels.csv"
medclr.pretrain(
    medclr.PretrainConfig(
        data=data, holdout=labels, spec=Path("phantom"), out=folder / "pretrain", key_file=key, epochs=4, batch_size=32
    )
)
found = medclr.finetune(medclr.FinetuneConfig(labels=labels, encoder=folder / "pretrain", out=folder / "finetune"))
found["splits"]["test"]["auroc"]

# %% [markdown]
# ## Where does it fall, and why?
#
# By scanner: AUROC, calibration, sensitivity and specificity at one threshold; whether labels of a scanner of its own
# would help; how well the scanner can be read from the features; and attributes that betray the label without a pixel.

# %%
shift = medclr.shift(
    medclr.ShiftConfig(classifier=[folder / "finetune"], by=["manufacturer"], out=folder / "shift", resamples=500)
)
shift.frame()

# %%
shift.shortcuts.head(8)

# %% [markdown]
# ## What do the target's scans bring back without labels, and its first labels?
#
# The target's patients are halved at random. Every method adapts to one half without its labels and is judged on the
# other; `target-trained` did learn labels of the target, and is the upper bound. The last table learns two and five
# labels of each class. Eighty phantoms and four epochs show how to ask, not an answer: all intervals are wide.

# %%
adapted = medclr.adapt(
    medclr.AdaptConfig(
        labels=labels,
        target="manufacturer=Borealis",
        encoder=[folder / "pretrain"],
        out=folder / "adapt",
        target_shots=[2, 5],
        draws=2,
        resamples=500,
        transductive=True,
    )
)
adapted.frame()

# %%
adapted.shots.points.drop(columns="reason")

# %%
SVG(filename=str(folder / "adapt" / "adapt.svg"))

# %% [markdown]
# ## The same, degraded
#
# A corruption makes a target domain at will: here the same volumes, blurred. `auto` is chosen without labels.

# %%
blurred = medclr.adapt(
    medclr.AdaptConfig(
        labels=labels,
        corruption="blur",
        encoder=[folder / "pretrain"],
        out=folder / "blurred",
        draws=2,
        resamples=500,
        transductive=True,
    )
)
pd.concat([blurred.points.set_index("method")["auroc"], blurred.regained.set_index("method")["share"]], axis=1)
