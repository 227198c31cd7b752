import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from medclr import __version__
from medclr.cli import COMMANDS, main, parse
from medclr.config import EfficiencyConfig, PretrainConfig, ScanConfig, paths_of
from medclr.errors import DataError, Interrupted, MedclrError, TooManySkipped, UsageError

Stub = Callable[[Callable[[Any], None]], None]


@pytest.fixture
def scan_is(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Put a function in the place of `medclr scan`."""

    def put(function: Callable[[Any], None]) -> None:
        module = types.ModuleType("medclr.commands.scan")
        vars(module)["scan"] = function
        monkeypatch.setitem(sys.modules, "medclr.commands.scan", module)

    return put


def raising(error: BaseException) -> Callable[[Any], None]:
    def function(config: Any) -> None:
        raise error

    return function


def test_help_lists_every_command_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name]] == [f"  {name:<11} {command.help}"]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_names_every_setting(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    for field in fields(COMMANDS[name].config):
        assert f"  --{field.name.replace('_', '-')} " in out
        assert " ".join(field.metadata["help"].split()[:4]) in out
    assert "<class" not in out
    assert "Path(" not in out
    assert "--config FILE" in out
    assert "--print_config" in out


def test_help_shows_defaults_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["efficiency", "--help"])
    out = capsys.readouterr().out
    assert "labelled training patients (default: 0.01 0.1 1.0)" in out
    assert "the draws and the resamples (default: 0)" in out
    assert out.count("(default: only") + out.count("(default: the only one)") == 1
    assert "default: None" not in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"medclr {__version__}\n"


def test_no_command_shows_the_commands_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["pretrian"], "medclr: no command 'pretrian'; did you mean medclr pretrain?"),
        (["--foo"], "medclr: no flag '--foo'; see medclr --help"),
        (["scan"], "medclr scan: needs --data; see medclr scan --help"),
        (["scan", "--data"], "medclr scan: --data: expected one argument; see medclr scan --help"),
        (["scan", "--data", "d", "e"], "medclr scan: unknown word 'e'; see medclr scan --help"),
        (["scan", "--dat", "d"], "medclr scan: unknown flag '--dat' (did you mean --data?); see medclr scan --help"),
        (
            ["pretrain", "--data", "d", "--batch-size", "q"],
            "medclr pretrain: --batch-size: 'q' is not a whole number; see medclr pretrain --help",
        ),
        (
            ["pretrain", "--data", "d", "--workers", "1.5"],
            "medclr pretrain: --workers: '1.5' is not a whole number; see medclr pretrain --help",
        ),
        (
            ["pretrain", "--data", "d", "--depth", "12"],
            "medclr pretrain: --depth: '12' is not one of 10, 18, 34, 50, 101, 152; see medclr pretrain --help",
        ),
        (
            ["pretrain", "--data", "d", "--batch-size", "1"],
            "medclr pretrain: --batch-size 1: must be at least 2; see medclr pretrain --help",
        ),
        (
            ["demo", "--seed", "4294967296"],
            "medclr demo: --seed 4294967296: must be below 2^32; see medclr demo --help",
        ),
        (
            ["efficiency", "--labels", "l", "--fractions", "0.1", "q"],
            "medclr efficiency: --fractions: 'q' is not a number; see medclr efficiency --help",
        ),
        (
            ["scan", "--data", "d", "--strict", "perhaps"],
            "medclr scan: --strict: 'perhaps' is not true or false; see medclr scan --help",
        ),
        (
            ["scan", "--config", "absent.yaml"],
            "medclr scan: --config: File does not exist: 'absent.yaml'; see medclr scan --help",
        ),
    ],
)
def test_wrong_usage_is_one_line(
    argv: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.replace(f"{tmp_path}/", "") == line + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: [1,\n", "--config: not valid YAML at line 2, column 1"),
        ("- 1\n", "--config: not a mapping from settings to values"),
        ("", "--config: not a mapping from settings to values"),
        ("bath_size: 3\n", "unknown flag '--bath-size' (did you mean --batch-size?)"),
        ("batch_size: many\n", "--batch-size: 'many' is not a whole number"),
        ("batch_size: null\n", "--batch-size: null is not a whole number"),
        ("strict: 3\n", "--strict: '3' is not true or false"),
        ("label: 1\n", "--label: '1' is not text (quote it)"),
        ("data: 3\n", "--data: not a path"),
        ("seed: !!python/object/apply:os.getpid []\n", "--config: not valid YAML at line 1, column 7"),
    ],
)
def test_wrong_yaml_is_one_line(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["pretrain", "--data", "d", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"medclr pretrain: {said}; see medclr pretrain --help\n"


def test_a_single_value_for_a_list_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("fractions: 0.5\n")
    assert main(["efficiency", "--labels", "l", "--config", str(file)]) == 2
    assert "--config: label, groups, fractions, encoder, arms and tuned must be lists" in capsys.readouterr().err


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("joined", [True, False])
def test_flags_win_over_yaml_wherever_config_stands(place: int, joined: bool, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("batch-size: 7\nmax_skipped: 0.5\nstrict: true\nburned_in: true\n")
    flags = ["--data=d", "--batch_size=8", "--strict=false"]
    config = [f"--config={file}"] if joined else ["--config", str(file)]
    assert parse("pretrain", flags[:place] + config + flags[place:]) == PretrainConfig(
        data=Path("d"), batch_size=8, max_skipped=0.5, strict=False, burned_in=True
    )


def test_augmentations_are_chosen_by_flags() -> None:
    config = parse("pretrain", ["--data", "d", "--crop-scale", "0.5", "1", "--without", "blur", "noise"])
    assert config == PretrainConfig(data=Path("d"), crop_scale=[0.5, 1.0], without=["blur", "noise"])
    assert (PretrainConfig(data=Path("d")).crop_scale, PretrainConfig(data=Path("d")).without) == ([0.3, 1.0], [])


@pytest.mark.parametrize("scale", [[0.3], [0.0, 1.0], [0.6, 0.3], [0.5, 1.5], [0.1, 0.2, 0.3], [float("nan"), 1.0]])
def test_a_crop_is_a_range_of_shares(scale: list[float]) -> None:
    with pytest.raises(UsageError, match=r"--crop-scale .*: must be two shares above 0 and at most 1"):
        PretrainConfig(data=Path("d"), crop_scale=scale)


def test_of_two_yaml_files_the_second_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("epochs: 3\nwidth: 8\n")
    (tmp_path / "b.yaml").write_text("epochs: 4\n")
    flags = ["--config", str(tmp_path / "a.yaml"), "--data", "d", "--config", str(tmp_path / "b.yaml")]
    assert parse("pretrain", flags) == PretrainConfig(data=Path("d"), epochs=4, width=8)


@pytest.mark.parametrize(("given", "value"), [("auto", "auto"), ("8", 8), ("0", 0)])
def test_micro_batch_is_a_word_or_a_number(given, value):
    assert parse("pretrain", ["--data", "d", "--micro-batch", given]).micro_batch == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--micro-batch", "some"], "--micro-batch: 'some' is not a whole number or auto"),
        (["--micro-batch", "-1"], "--micro-batch -1: must be at least 0"),
        (["--micro-batch", "257"], "--micro-batch 257: must be at most --batch-size 256; 0 is all of it"),
        (["--batch-size", "1"], "--batch-size 1: must be at least 2"),
        (["--clip-norm", "0"], "--clip-norm 0.0: must be above 0"),
        (["--precision", "16"], "--precision: '16' is not one of auto, float32, bf16"),
    ],
)
def test_what_pretrain_cannot_do_is_refused(flags, message):
    with pytest.raises(UsageError) as caught:
        parse("pretrain", ["--data", "d", *flags])
    assert message in str(caught.value)


def test_values_take_the_types_of_the_config() -> None:
    flags = "--labels 1 --fractions 0.5 1 --arms pca scratch --label 1 --transductive --lr 1e-2 --out 2026 --workers 0"
    assert parse("efficiency", flags.split()) == EfficiencyConfig(
        labels=Path("1"),
        fractions=[0.5, 1.0],
        arms=["pca", "scratch"],
        label=["1"],
        transductive=True,
        lr=0.01,
        out=Path("2026"),
        workers=0,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_printed_config_reads_back_as_the_same(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    required = {
        "adapt": ["--labels", "l", "--target", "view=AP"],
        "adopt": ["--network", "monai:resnet18", "--weights", "w", "--like", "r"],
        "efficiency": ["--labels", "l"],
        "leakage": ["--first", "f"],
        "finetune": ["--labels", "l"],
        "distill": ["--teacher", "t"],
        "shift": [],
        "demo": [],
        "doctor": [],
    }
    flags = required.get(name, ["--data", "d"])
    assert main([name, *flags, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert set(yaml.safe_load(printed)) == {field.name for field in fields(COMMANDS[name].config)}
    file = tmp_path / "config.yaml"
    file.write_text(printed)
    assert parse(name, ["--config", str(file)]) == parse(name, flags)


def test_the_command_gets_its_config(scan_is: Stub) -> None:
    seen: list[ScanConfig] = []
    scan_is(seen.append)
    assert main(["scan", "--data", "d"]) == 0
    assert seen == [ScanConfig(data=Path("d"))]


@pytest.mark.parametrize(("error", "code"), [(MedclrError, 1), (DataError, 1), (UsageError, 2), (TooManySkipped, 3)])
def test_errors_of_ours_are_one_line(
    error: type[MedclrError], code: int, scan_is: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    scan_is(raising(error("a gap of 3 mm;\n raise --max-gap-mm\x1b[2J")))
    assert main(["scan", "--data", "d"]) == code
    assert capsys.readouterr().err == "medclr: a gap of 3 mm; raise --max-gap-mm?[2J\n"


def test_other_errors_tell_their_place_and_not_their_text(scan_is: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(config: Any) -> None:
        try:
            paths_of("CANARY^JOHN")
        except TypeError as error:
            error.args = ("CANARY^JOHN",)
            raise

    scan_is(fail)
    assert main(["scan", "--data", "d"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("medclr: internal error: TypeError in config.py line ")
    assert err.count("\n") == 1
    assert "CANARY" not in err

    assert main(["scan", "--debug", "--data", "d"]) == 1
    debugged = capsys.readouterr().err
    assert "Traceback" in debugged
    assert "CANARY^JOHN" in debugged
    assert debugged.endswith(err)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "medclr: no space left on the device; free some, or write elsewhere with --out\n"),
        (errno.EROFS, "medclr: read-only file system; write elsewhere with --out\n"),
        (errno.EACCES, "medclr: permission denied; check that the input can be read and that --out can be written\n"),
    ],
)
def test_errors_of_the_system_name_the_remedy_and_no_file(
    number: int, said: str, scan_is: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    scan_is(raising(OSError(number, os.strerror(number), "/archive/CANARY")))
    assert main(["scan", "--data", "d"]) == 1
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Interrupted(signal.SIGINT), 130),
        (Interrupted(signal.SIGTERM), 143),
        (Interrupted(signal.SIGUSR1), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_interruption_says_how_to_continue(
    error: BaseException, code: int, scan_is: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    scan_is(raising(error))
    assert main(["scan", "--data", "d", "--out", "o"]) == code
    assert capsys.readouterr().err == "medclr: interrupted; run the same command again to continue\n"
    assert main(["scan", "--data", "d"]) == code
    assert "--out set to this run's folder" in capsys.readouterr().err


def test_signal_handlers_are_put_back(scan_is: Stub) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    during: list[Any] = []
    scan_is(lambda config: during.extend([signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]))
    main(["scan", "--data", "d"])
    assert during[0] is during[1]
    assert during[0] not in before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def process(body: str) -> subprocess.Popen[str]:
    """A Python process whose `medclr scan` is `body`, the body of a function."""
    code = "\n".join(
        [
            "import os, signal, sys, time, types, warnings",
            "from medclr.cli import entry",
            "def scan(config):",
            textwrap.indent(textwrap.dedent(body), "    "),
            "sys.modules['medclr.commands.scan'] = types.SimpleNamespace(scan=scan)",
            "sys.argv = ['medclr', 'scan', '--data', 'd']",
            "entry()",
        ]
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_ends_the_process_with_one_line(signum: signal.Signals, code: int) -> None:
    body = """
        print("ready", flush=True)
        time.sleep(60)
    """
    with process(body) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signum)
        out, err = running.communicate(timeout=20)
    assert running.returncode == code
    assert out == ""
    assert err.startswith("medclr: interrupted;")
    assert err.count("\n") == 1


def test_forked_workers_leave_ctrl_c_to_their_parent_and_obey_sigterm() -> None:
    body = """
        for signum in (signal.SIGINT, signal.SIGTERM):
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signum)
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    with process(body) as running:
        assert running.communicate(timeout=20) == ("7\n-15\n", "")


@pytest.mark.parametrize("flush", [True, False])
def test_a_reader_that_goes_away_ends_it_quietly(flush: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    body = f"""
        sys.stdin.readline()
        print("a line", flush={flush})
    """
    with process(body) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        running.stdin.write("go\n")
        running.stdin.close()
        assert running.stderr.read() == ""
        assert running.wait(timeout=20) == 1


def test_warnings_of_libraries_are_muted_since_they_may_quote_a_name() -> None:
    with process("warnings.warn('CANARY')") as running:
        assert running.communicate(timeout=20) == ("", "")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = """if True:
        import sys, medclr
        from medclr.cli import main
        main(["--help"])
        overview = set(sys.modules)
        main(["pretrain", "--help"])
        heavy = {"torch", "monai", "pytorch_lightning", "numpy", "pandas", "pydicom", "rich"}
        sys.exit(f"{heavy & set(sys.modules)} {overview & {'jsonargparse'}}")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "set() set()\n"

    # The processor's time, since the machine may be busy with other tests.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-c", "from medclr.cli import main; main(['--help'])"]
    subprocess.run(argv, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7
