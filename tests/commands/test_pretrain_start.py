"""`medclr pretrain --encoder`: pre-training that goes on from a bundle."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.networks import nets

import medclr
from medclr.cli import main
from medclr.commands import pretrain as command
from medclr.commands.efficiency import _started, encoder_groups
from medclr.commands.finetune import sources
from medclr.config import FinetuneConfig
from medclr.data.identity import Seen, check_leakage
from medclr.training import moco, trainer
from medclr.training.trainer import pretrain_encoder

SPEC = """
name: {name}
modality: ['']
spatial_dims: 2
normalisation: percentile
sizing: fit
max_patch: 12
preset: xray
{more}
"""
SETTINGS = ["--epochs", "3", "--batch-size", "8", "--workers", "0", "--device", "cpu", "--warmup-epochs", "0"]


def images(folder, seed, n=20):
    rng = np.random.default_rng(seed)
    axis = np.arange(12)
    found = rng.normal(90, 10, (n, 12, 12))
    for image in found:
        x, y, size = rng.uniform((2, 2, 1), (10, 10, 4))
        image += 120 * (np.hypot(axis[:, None] - x, axis - y) < size)
    Path(folder).mkdir()
    # A file of another name, since nothing else tells unnamed patients of two folders apart.
    np.savez(f"{folder}/{folder}.npz", train_images=found.clip(0, 255).astype(np.uint8), train_labels=np.zeros(n))


def train(*words, data="target", key="key"):
    return main(["pretrain", "--data", data, "--key-file", key, *SETTINGS, *words])


def one_row(patient):
    """Of a manifest, with an image that nobody has seen."""
    return pd.DataFrame({"patient_key": [patient], "pixel_hash": ["new"], "patient_known": [True]})


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with two archives, a run on the first, and an encoder of weights from elsewhere like that."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, name in enumerate(("source", "target", "third")):
            images(name, seed)
        Path("own.yaml").write_text(SPEC.format(name="own", more="licence: CC0\ncitation: Doe 1999"))
        words = ["--spec", "own.yaml", "--width", "8", "--projector-layers", "3", "--seed", "4", "--out", "first"]
        assert train(*words, data="source") == 0
        torch.manual_seed(0)
        theirs = nets.resnet10(spatial_dims=2, n_input_channels=1, bias_downsample=False)
        torch.save(theirs.state_dict(), "theirs.pth")
        words = ["--network", "monai:resnet10", "--weights", "theirs.pth", "--like", "first", "--out", "adopted"]
        assert main(["adopt", *words, "--trained-on", "22 sets"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def here(before, monkeypatch):
    monkeypatch.chdir(before)


@pytest.fixture
def begun(monkeypatch):
    """The weights that each pre-training began with."""
    found = []
    networks = trainer.networks

    def build(*arguments):
        encoder, projector = networks(*arguments)
        found.append([{k: v.clone() for k, v in part.state_dict().items()} for part in (encoder, projector)])
        assert encoder.training
        assert projector.training
        return encoder, projector

    monkeypatch.setattr(trainer, "networks", build)
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def details(path):
    return medclr.load_encoder(path).bundle.details


def test_it_goes_on_from_all_weights_of_the_bundle(begun, capsys):
    assert train("--encoder", "first", "--out", "second") == 0
    first, second = medclr.load_encoder("first").bundle, medclr.load_encoder("second").bundle
    ((encoder, projector),) = begun
    assert same(encoder, first.encoder.state_dict())
    assert same(projector, first.projector.state_dict())
    line = f"starting from a ResNet-10 of width 8, fingerprint {first.digest[:16]}: all 72 weights of its encoder, and "
    assert line + "all 14 of its projector" in capsys.readouterr().out.splitlines()
    # Both moved on, and so did the statistics of batch norm.
    for name, value in second.encoder.state_dict().items():
        assert not torch.equal(value, encoder[name]), name
    assert second.architecture == first.architecture
    rows = [pd.read_csv(f"{name}/metrics.csv")["loss"].iloc[0] for name in ("first", "second")]
    assert rows[1] < rows[0]


def test_the_bundle_says_where_it_began_and_whom_that_had_seen():
    if not Path("second").exists():
        assert train("--encoder", "first", "--out", "second") == 0
    first, second = details("first"), details("second")
    assert second["start"] == {
        "fingerprint": medclr.load_encoder("first").bundle.digest[:16],
        **{name: first[name] for name in ("method", "hyperparameters", "code_version", "manifest_hash")},
        "data": {"name": "own", "licence": "CC0", "citation": "Doe 1999"},
    }
    assert "start" not in first
    learned = second["hyperparameters"]
    assert [learned[name] for name in ("depth", "width", "norm", "projector_layers")] == [10, 8, "batch", 3]
    assert not [value for value in json.dumps(second).split('"') if str(Path.cwd()) in value]
    # What its spec says of the data is about other data now.
    assert second["spec"] == first["spec"] | {"licence": "", "citation": ""}
    old, new = Seen.from_dict(first["seen"]), Seen.from_dict(second["seen"])
    assert len(new.pixels) == 40
    assert old.pixels < new.pixels
    assert old.patients < new.patients
    assert check_leakage(new, new.fingerprint, one_row(min(old.patients))).status == "leak"
    # A third one tells of both, and the patients of all three are seen.
    assert train("--encoder", "second/encoder", "--out", "last", data="third") == 0
    last = details("last")
    assert last["start"]["start"] == second["start"]
    assert len(Seen.from_dict(last["seen"]).pixels) == 60
    before = (
        " It began with the weights that SimCLR had trained for 3 epochs on other scans, or more of them (spec own)."
    )
    assert _started(last) == 2 * before


def test_under_another_key_patients_are_unknown_and_the_run_says_so(capsys):
    assert train("--encoder", "first", "--out", "rekeyed", key="other") == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("warning: --encoder was made under another key")]
    assert len(told) == 2  # at once, and at the end
    seen = Seen.from_dict(details("rekeyed")["seen"])
    assert (len(seen.patients), len(seen.pixels), seen.n_unknown) == (20, 40, 40)
    assert check_leakage(seen, seen.fingerprint, one_row("new")).status == "patients not checkable"


def test_held_out_volumes_that_the_start_had_seen_are_told_at_once_and_last(capsys):
    manifest = pd.read_parquet("first/private/manifest.parquet")
    keys = pd.read_csv("first/private/keys.csv")
    raw = keys[keys["kind"] == "patient"].set_index("pseudonym")["raw"][manifest["patient_key"][:4]]
    Path("held.csv").write_text("patient_id,split,label\n" + "".join(f"{r},test,{i % 2}\n" for i, r in enumerate(raw)))
    assert train("--encoder", "first", "--holdout", "held.csv", "--out", "leaky", data="source") == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = {line for line in lines if "--encoder had seen 4 of the 4 volumes held out" in line}
    assert lines.count(line) == 2


def test_weights_from_elsewhere_stay_unrecorded(begun, capsys):
    assert train("--encoder", "adopted", "--out", "from_elsewhere") == 0
    out = capsys.readouterr().out
    assert "of its encoder; it has no projector, and a new one begins at random" in out
    assert "warning: no record says which patients resnet10 (weights from elsewhere, trained on “22 sets”" in out
    adopted, after = medclr.load_encoder("adopted").bundle, medclr.load_encoder("from_elsewhere").bundle
    assert same(begun[0][0], adopted.encoder.state_dict())
    assert after.architecture == adopted.architecture
    seen = Seen.from_dict(after.details["seen"])
    assert check_leakage(seen, seen.fingerprint, one_row("new")).status == "not checkable"
    assert after.details["start"]["method"] == "adopted"
    # An epoch more, of the same settings but for the seed: another pre-training of the same arm.
    assert train("--encoder", "adopted", "--seed", "1", "--out", "from_elsewhere-1") == 0
    both = [medclr.load_encoder(path) for path in ("from_elsewhere", "from_elsewhere-1")]
    assert {name: len(group) for name, group in encoder_groups(both).items()} == {"simclr": 2}


def test_in_a_curve_another_start_is_another_arm_and_other_seeds_of_it_are_not():
    for start, out in (("first", "second"), ("first-5", "second-5")):
        if start == "first-5":
            words = ["--spec", "own.yaml", "--width", "8", "--projector-layers", "3", "--seed", "5", "--out", start]
            assert train(*words, data="source") == 0
        if not Path(out).exists():
            assert train("--encoder", start, *(["--seed", "5"] if start == "first-5" else []), "--out", out) == 0
    groups = encoder_groups([medclr.load_encoder(path) for path in ("first", "second", "second-5")])
    assert {name: len(group) for name, group in groups.items()} == {"simclr": 1, "simclr2": 2}


def test_moco_begins_both_networks_there_and_has_a_head_of_its_own(capsys, monkeypatch):
    found = []
    follow = moco.MoCo.__init__

    def init(self, *arguments, **settings):
        follow(self, *arguments, **settings)
        found.append(self.momentum_encoder[0].state_dict())
        found[0] = {name: value.clone() for name, value in found[0].items()}

    monkeypatch.setattr(moco.MoCo, "__init__", init)
    assert train("--encoder", "first", "--method", "moco", "--batch-size", "5", "--out", "moco") == 0
    first, after = medclr.load_encoder("first").bundle, medclr.load_encoder("moco").bundle
    assert same(found[0], first.encoder.state_dict())
    needs, has = "3 layers of 64, without batch norm", "3 layers of 64, with batch norm"
    line = (
        f"a new projector begins at random, since MoCo's is to have {needs}, and the 14 weights of its own are of {has}"
    )
    assert line in capsys.readouterr().out
    assert after.details["method"] == "moco"


def test_killed_and_resumed_equals_uninterrupted_and_another_start_is_refused(monkeypatch, capsys):
    words = ["--encoder", "first", "--projector-layers", "2"]
    assert train(*words, "--out", "whole") == 0

    def stopped(*arguments, **settings):
        on_epoch = arguments[7]

        def stop(row):
            on_epoch(row)
            if row["epoch"] == 1:
                raise InterruptedError

        return pretrain_encoder(*arguments[:7], stop, *arguments[8:], **settings)

    with monkeypatch.context() as patch:
        patch.setattr(command, "pretrain_encoder", stopped)
        assert train(*words, "--out", "parts") == 1
    assert train("--encoder", "second", "--projector-layers", "2", "--out", "parts") == 2
    assert "holds a run with another --encoder" in capsys.readouterr().err
    assert train(*words, "--out", "parts") == 0
    whole, parts = (medclr.load_encoder(path).bundle for path in ("whole", "parts"))
    assert same(whole.encoder.state_dict(), parts.encoder.state_dict())
    assert whole.details == parts.details


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth", "18"], "--depth 18: the encoder that it starts from, a ResNet-10 of width 8, has 10; leave out"),
        (["--width", "16"], "--width 16: the encoder that it starts from, a ResNet-10 of width 8, has 8; leave out"),
        (["--norm", "group"], "--norm group: the encoder that it starts from, a ResNet-10 of width 8, has batch"),
        (["--spec", "patch"], "--spec patch.yaml: its patch is 10 x 10, and that of --encoder 12 x 12; leave out"),
        (["--spec", "window"], "its normalisation is window, and that of --encoder percentile"),
        (["--spec", "solid"], "its spatial_dims is 3, and that of --encoder 2"),
        (["--encoder", "adopted", "--depth", "10"], "a resnet10-nobias of MONAI, has its own; leave out --depth"),
        (["--encoder", "nowhere"], "--encoder nowhere does not exist; give a finished pretrain run"),
    ],
)
def test_what_contradicts_the_encoder_is_refused_and_leaves_nothing(words, message, capsys):
    Path("patch.yaml").write_text(SPEC.format(name="patch", more="patch: [10, 10]"))
    window = SPEC.format(name="window", more="window: [0, 200]").replace("percentile", "window")
    Path("window.yaml").write_text(window)
    Path("solid.yaml").write_text(SPEC.format(name="solid", more="").replace("dims: 2", "dims: 3"))
    words = [f"{word}.yaml" if word in ("patch", "window", "solid") else word for word in words]
    start = [] if "--encoder" in words else ["--encoder", "first"]
    assert train(*start, *words, "--out", "refused") in (1, 2)
    assert message in capsys.readouterr().err
    assert not Path("refused").exists()


def test_a_spec_that_agrees_says_of_the_data_what_is_its_own(capsys):
    more = "licence: CC-BY\ncitation: Roe 2001\npatch: [12, 12]"
    Path("agrees.yaml").write_text(SPEC.format(name="agrees", more=more))
    assert train("--encoder", "first", "--spec", "agrees.yaml", "--epochs", "1", "--out", "agrees") == 0
    assert "Data: agrees; licence: CC-BY. Cite: Roe 2001" in capsys.readouterr().out
    assert details("agrees")["spec"]["citation"] == "Roe 2001"
    found = sources(FinetuneConfig(labels=Path("x.csv")), medclr.load_encoder("agrees"))
    assert found == [
        "Encoder's data: agrees; licence: CC-BY. Cite: Roe 2001",
        "Encoder's data before: own; licence: CC0. Cite: Doe 1999",
    ]
