"""All weights or none, and no code."""

import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medclr.errors import BundleError, UsageError
from medclr.models.named import Named
from medclr.models.weights import fit_weights, read_weights


def network() -> Named:
    layers = {"stem": nn.Conv2d(1, 4, 3), "bn": nn.BatchNorm2d(4), "body": nn.Conv2d(4, 4, 1), "pool": nn.Flatten()}
    return Named(nn.Sequential(OrderedDict(layers)), ("fc",), 0.0, 1.0)


@pytest.fixture
def given() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    tensors = network().body.state_dict()
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in tensors.items()}


def fits(given, tensors) -> list[str]:
    found = network()
    said = fit_weights(found, tensors)
    for name, tensor in found.body.state_dict().items():
        torch.testing.assert_close(tensor, given[name])
    return said


def test_weights_fit_under_any_prefix_and_without_their_head(given):
    assert fits(given, given) == []
    wrapped = {f"module.encoder.{name}": tensor for name, tensor in given.items()}
    head = {"module.encoder.fc.weight": torch.rand(3), "module.projector.0.weight": torch.rand(3)}
    assert fits(given, wrapped | head) == ["names lost their prefix module.encoder", "left out: fc"]


def test_a_counter_that_old_files_lack_is_no_weight_and_halves_become_floats(given):
    fewer = {name: tensor for name, tensor in given.items() if not name.endswith("num_batches_tracked")}
    assert fits(given, fewer) == []
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    assert fits({name: tensor.float() if tensor.is_floating_point() else given[name] for name, tensor in half.items()},
                half) == []  # fmt: skip


def test_parts_may_be_numbered_by_their_order(given):
    named = network().body
    named.load_state_dict(given)
    cut = nn.ModuleDict({"backbone": nn.Sequential(*named.children(), nn.Linear(2, 2))}).state_dict()
    assert "backbone.2.bias" in cut
    said = "its parts, by number in the file, were named by their order"
    assert fits(given, cut) == ["names lost their prefix backbone", said, "left out: 4"]
    without = {name: tensor for name, tensor in cut.items() if not name.endswith("num_batches_tracked")}
    assert fits(given, without) == ["names lost their prefix backbone", said, "left out: 4"]
    # What is wrong is told by the names of the file.
    del cut["backbone.1.running_mean"]
    with pytest.raises(BundleError, match=r"7 of 8 weights fit; 1 missing: backbone.1.running_mean$"):
        fit_weights(network(), cut)


def test_counters_that_are_not_there_are_not_said_to_fit(given):
    junk = {"stem.bias": given["stem.bias"], "bn.junk": torch.rand(2)}
    with pytest.raises(BundleError, match=r"^1 of 8 weights fit; 7 missing: .*; 1 unexpected: bn.junk$"):
        fit_weights(network(), junk)


def test_a_stem_of_colours_sees_grey_as_equal_colours(given):
    colours = given | {"stem.weight": torch.rand(4, 3, 3, 3)}
    found = network()
    assert fit_weights(found, colours) == ["its stem, trained on 3 channels, was summed over them"]
    theirs = nn.Conv2d(3, 4, 3)
    theirs.load_state_dict({"weight": colours["stem.weight"], "bias": colours["stem.bias"]})
    images = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(found.body.stem(images), theirs(images.expand(-1, 3, -1, -1)))


def test_anything_less_than_all_of_them_is_refused_and_names_the_first(given):
    before = network()
    kept = {name: tensor.clone() for name, tensor in before.body.state_dict().items()}
    gone = {name: tensor for name, tensor in given.items() if name.startswith("bn")}
    for tensors, words in (
        (gone, r"4 of 8 weights fit; 4 missing: stem.weight, stem.bias, body.weight, …"),
        (
            {"other": torch.rand(3)},
            r"not one of its 1 names is of this network: it has other, and wanted are stem.",
        ),
        (given | {"body.weight": torch.rand(4, 4, 3, 3)}, r"1 of another shape: body.weight \[4, 4, 3, 3\] for \[4, 4"),
        (given | {"bn.bias": torch.full((4,), torch.nan)}, r"1 not finite: bn.bias"),
        (given | {"body.extra": torch.rand(1)}, r"8 of 8 weights fit; 1 unexpected: body.extra"),
    ):
        with pytest.raises(BundleError, match=words):
            fit_weights(before, tensors)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in before.body.state_dict().items())


def solid() -> Named:
    layers = {"stem": nn.Conv3d(1, 4, (5, 3, 3)), "bn": nn.BatchNorm3d(4), "body": nn.Conv3d(4, 4, 1)}
    return Named(nn.Sequential(OrderedDict(layers)), ("fc",), 0.0, 1.0)


def test_2d_weights_are_repeated_along_an_axis_and_divided_by_how_often(given):
    network = solid()
    said = "its 2 convolutions, trained in 2D, were repeated along an axis and divided by as many"
    assert fit_weights(network, given, inflate=0) == [said]
    found = network.body.state_dict()
    torch.testing.assert_close(found["stem.weight"], given["stem.weight"][:, :, None].expand(-1, -1, 5, -1, -1) / 5)
    torch.testing.assert_close(found["body.weight"], given["body.weight"][..., None])
    for name in ("stem.bias", "bn.running_var", "body.bias"):
        assert torch.equal(found[name], given[name])
    # Summed over colours first or last, that is the same.
    colours = given | {"stem.weight": torch.rand(4, 3, 3, 3).half()}
    assert fit_weights(network, colours, inflate=0) == ["its stem, trained on 3 channels, was summed over them", said]
    expected = colours["stem.weight"].float().sum(1, keepdim=True)
    torch.testing.assert_close(network.body.state_dict()["stem.weight"].sum(2), expected)


def test_what_is_no_2d_network_is_not_inflated(given):
    with pytest.raises(BundleError, match=r"1 of another shape: stem.weight \[4, 1, 3, 3, 3\] for \[4, 1, 3, 5, 3\]"):
        fit_weights(Named(nn.Sequential(OrderedDict(stem=nn.Conv3d(1, 4, (3, 5, 3)))), (), 0.0, 1.0),
                    {name: given[name] for name in ("stem.weight", "stem.bias")}, inflate=0)  # fmt: skip
    with pytest.raises(BundleError, match="none of its convolutions is of a 2D network"):
        fit_weights(solid(), solid().body.state_dict(), inflate=0)


def test_of_two_such_networks_in_a_file_none_is_guessed(given):
    both = {f"{which}.{name}": tensor for which in ("encoder_q", "encoder_k") for name, tensor in given.items()}
    with pytest.raises(BundleError, match=r"several such networks, as encoder_q\. and as encoder_k\.; save"):
        fit_weights(network(), both)


def test_files_are_read_as_tensors_by_name(given, tmp_path):
    save_file(given, tmp_path / "a.safetensors")
    torch.save(given, tmp_path / "b.pt")
    torch.save({"epoch": 3, "state_dict": given, "optimizer": {"lr": 0.1}}, tmp_path / "c.pth")
    torch.save({"model": {"state_dict": given}}, tmp_path / "d.ckpt")
    for name in ("a.safetensors", "b.pt", "c.pth", "d.ckpt"):
        found = read_weights(tmp_path / name)
        assert found.keys() == given.keys()
        assert all(torch.equal(found[key], given[key]) for key in given)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "trap": Trap()}, "trap.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap(), 2))
    (tmp_path / "junk.pt").write_bytes(b"\x00" * 50)
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("trap.pt", "plain.pkl", "junk.pt", "empty.pt"):
        with pytest.raises(BundleError, match=r"not a checkpoint of tensors alone.*save its state_dict\(\)"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [b"\x80\x02s", b"\x80\x02h\x09.", b"\x80\x02J\x01", b"\x80\x02c_codecs\nencode\n."])
def test_a_damaged_checkpoint_is_named_whatever_the_unpickler_meets_first(tmp_path, content):
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(BundleError, match=r"damaged\.pt: (not a checkpoint of tensors alone|holds no tensors)"):
        read_weights(tmp_path / "damaged.pt")


def test_a_file_without_tensors_and_none_at_all_are_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    torch.save([torch.rand(2)], tmp_path / "list.pt")
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 20)
    for name, error, words in (
        ("a.pt", BundleError, "holds no tensors by name"),
        ("list.pt", BundleError, "holds no tensors by name"),
        ("b.safetensors", BundleError, "not a safetensors file"),
        ("c.pt", UsageError, "no such file"),
    ):
        with pytest.raises(error, match=words):
            read_weights(tmp_path / name)
