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
# # How many labels does pre-training save?
#
# From a folder of DICOM files to a label-efficiency curve, on phantoms that medclr generates. Everything runs on two
# CPU cores in a few minutes. With your own scans, replace `phantoms/dicom` and `phantoms/labels.csv`.

# %%
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import SVG

import medclr

folder = Path(mkdtemp())

# %% [markdown]
# ## Scans and labels
#
# Forty phantom patients on two scanners; some files are broken on purpose. `labels.csv` names each series, its patient,
# its split and whether it shows a lesion.

# %%
medclr.write_phantoms(folder / "phantoms", patients=40, seed=0)
data, labels = folder / "phantoms" / "dicom", folder / "phantoms" / "labels.csv"
key = folder / "key"
manifest = medclr.scan(medclr.ScanConfig(data=data, out=folder / "scan", key_file=key))
manifest.groupby(["manufacturer", "kernel"]).size()

# %% [markdown]
# ## An encoder from unlabelled scans
#
# Patients of the val and test splits are held out, and the encoder records whom it saw.

# %%
encoder = medclr.pretrain(
    medclr.PretrainConfig(
        data=data, holdout=labels, spec=Path("phantom"), out=folder / "pretrain", key_file=key, epochs=4, batch_size=32
    )
)
sum(p.numel() for p in encoder.parameters())

# %% [markdown]
# ## What the labels are worth
#
# Every arm sees the same nested draws of labelled patients; intervals resample test patients and draws together. With
# forty patients they are wide, and the verdict says so.

# %%
curve = medclr.efficiency(
    medclr.EfficiencyConfig(
        labels=labels,
        encoder=[folder / "pretrain"],
        out=folder / "efficiency",
        fractions=[0.3, 1.0],
        draws=2,
        arms=["linear", "pca"],
    )
)
curve.frame()

# %%
curve.verdict()

# %%
SVG(filename=str(folder / "efficiency" / "curve.svg"))
