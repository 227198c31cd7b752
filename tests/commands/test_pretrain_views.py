from pathlib import Path

import pytest

from medclr.commands.pretrain import _views, pretrain
from medclr.config import PretrainConfig
from medclr.data.spec import load_spec
from medclr.errors import UsageError


def test_the_views_are_those_of_the_spec_as_far_as_the_settings_leave_them(tmp_path: Path) -> None:
    config = PretrainConfig(data=tmp_path, crop_scale=[0.5, 0.8], without=["blur", "rotation"])
    steps = _views(config, load_spec(Path("cxr"))).steps
    assert list(steps) == ["crop", "window", "equalise", "intensity", "noise"]
    assert steps["crop"].scale == (0.5, 0.8)
    assert steps["crop"].rotation_deg == 0
    assert not any(steps["crop"].flips)


@pytest.mark.parametrize(
    ("spec", "message"),
    [(Path("cxr"), r"--without gibbs: no step of preset xray, which has crop, "), (None, r"--without hue: no preset")],
)
def test_a_step_that_cannot_be_left_out_is_told_before_anything_is_read(
    tmp_path: Path, spec: Path | None, message: str
) -> None:
    (tmp_path / "data").mkdir()
    without = ["gibbs"] if spec else ["hue"]
    config = PretrainConfig(data=tmp_path / "data", out=tmp_path / "run", spec=spec, without=without)
    with pytest.raises(UsageError, match=message):
        pretrain(config)
    assert not (tmp_path / "run").exists()
