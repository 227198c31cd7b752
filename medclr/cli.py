"""The command line: flags and YAML become one frozen config, and the config goes to one function.

Nothing heavy is imported here, so that `--help` is quick; nothing else in medclr ends the process.
"""

import argparse
import difflib
import errno
import os
import re
import select
import signal
import sys
import textwrap
import traceback
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from medclr import __version__
from medclr.config import (
    AdaptConfig,
    AdoptConfig,
    DemoConfig,
    DistillConfig,
    DoctorConfig,
    EfficiencyConfig,
    EmbedConfig,
    FinetuneConfig,
    LeakageConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
    PreviewConfig,
    ScanConfig,
    ShiftConfig,
)
from medclr.errors import Elsewhere, Interrupted, MedclrError, UsageError
from medclr.training.ranks import place


@dataclass(frozen=True)
class Command:
    """A config class, and the module whose function of the command's name takes it."""

    config: type
    module: str

    @property
    def help(self) -> str:
        return (self.config.__doc__ or "").strip()


COMMANDS = {
    "demo": Command(DemoConfig, "medclr.commands.demo"),
    "scan": Command(ScanConfig, "medclr.commands.scan"),
    "preview": Command(PreviewConfig, "medclr.commands.preview"),
    "prepare": Command(PrepareConfig, "medclr.commands.prepare"),
    "pretrain": Command(PretrainConfig, "medclr.commands.pretrain"),
    "adopt": Command(AdoptConfig, "medclr.commands.adopt"),
    "finetune": Command(FinetuneConfig, "medclr.commands.finetune"),
    "predict": Command(PredictConfig, "medclr.commands.predict"),
    "embed": Command(EmbedConfig, "medclr.commands.embed"),
    "efficiency": Command(EfficiencyConfig, "medclr.commands.efficiency"),
    "distill": Command(DistillConfig, "medclr.commands.distill"),
    "shift": Command(ShiftConfig, "medclr.commands.shift"),
    "adapt": Command(AdaptConfig, "medclr.commands.adapt"),
    "leakage": Command(LeakageConfig, "medclr.commands.leakage"),
    "doctor": Command(DoctorConfig, "medclr.commands.doctor"),
}

_OS_ERRORS = {
    errno.ENOSPC: "no space left on the device; free some, or write elsewhere with --out",
    errno.EDQUOT: "disk quota exceeded; free some, or write elsewhere with --out",
    errno.EROFS: "read-only file system; write elsewhere with --out",
    errno.EACCES: "permission denied; check that the input can be read and that --out can be written",
    errno.EPERM: "permission denied; check that the input can be read and that --out can be written",
    errno.EMFILE: "too many open files; lower --workers, or raise the limit (ulimit -n)",
}


def entry() -> NoReturn:
    """What the `medclr` script calls."""
    if not sys.warnoptions:
        # Libraries quote the values they warn about, and a value may be a patient's name. python -W shows them.
        warnings.simplefilter("ignore")
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: what follows `medclr` on the command line; by default, this process's own.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 done but more was skipped than allowed, 128 + signal.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    config: Any = None
    with _signals_raise():
        try:
            if not args:
                print(_overview(), file=sys.stderr)
                return UsageError.exit_code
            name, flags = args[0], args[1:]
            if name in ("-h", "--help"):
                print(_overview())
            elif name == "--version":
                print(f"medclr {__version__}")
            elif name not in COMMANDS:
                raise UsageError(_unknown(name))
            else:
                config = parse(name, flags)
                if config is not None:
                    getattr(import_module(COMMANDS[name].module), name)(config)
            sys.stdout.flush()
            return 0
        except (Exception, Interrupted, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exception(error)
            code, message = _verdict(error, config)
            if message:
                print(_one_line(message), file=sys.stderr)
            return code


def parse(name: str, flags: list[str]) -> Any:
    """Turn the flags of the command `name` into its config, or into None where they only asked for help.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    try:
        namespace = _parser(name).parse_args(_config_first(flags)).as_dict()
        hints = get_type_hints(COMMANDS[name].config)
        values = {key: namespace[key] for key in hints}
        for key, value in values.items():
            # A null in YAML passes for any type.
            if value is None and type(None) not in get_args(hints[key]):
                raise UsageError(f"{_flag(key)}: null is not {_kind(hints[key])}")
        return COMMANDS[name].config(**values)
    except UsageError as error:
        # Same class, and the name of the command that the user has to look up.
        raise _BadFlags(f"medclr {name}: {error}; see medclr {name} --help") from error
    except SystemExit:
        # --help and --print_config have printed what they had to.
        return None


class _BadFlags(UsageError):
    """A usage error that already names its command."""


def _parser(name: str) -> Any:
    # 0.2 s to import, and the overview does without.
    import jsonargparse

    hints = get_type_hints(COMMANDS[name].config)

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UsageError(_condensed(message, hints)) from ex

    required = [f for f in fields(COMMANDS[name].config) if f.default is MISSING and f.default_factory is MISSING]
    parser = Parser(
        prog=f"medclr {name}",
        usage=" ".join(
            [f"medclr {name}", *(f"{_flag(f.name)} {_metavar(hints[f.name])}" for f in required), "[options]"]
        ),
        description=COMMANDS[name].help,
        epilog="--debug shows the traceback of a failure; it may name patients.",
        formatter_class=_Formatter,
        allow_abbrev=False,
        default_env=False,
    )
    groups = {True: parser.add_argument_group("required"), False: parser.add_argument_group("settings")}
    for f in fields(COMMANDS[name].config):
        hint, text = hints[f.name], f.metadata["help"].replace("%", "%%")
        extra: dict[str, Any] = {"type": hint, "metavar": _metavar(hint)}
        if hint is bool:
            # A bare flag means true; `--flag false` takes back what a YAML file says.
            extra |= {"nargs": "?", "const": True}
        elif get_origin(hint) is list:
            extra |= {"type": get_args(hint)[0], "nargs": "+"}
            if get_origin(_plain(hint)) is Literal:
                extra["metavar"] = "NAME"
                text += f", any of {', '.join(get_args(_plain(hint)))}"
        if f in required:
            extra["required"] = True
        else:
            extra["default"] = f.default if f.default_factory is MISSING else f.default_factory()
            if "(default" not in text and extra["default"] not in (None, []) and hint is not bool:
                text += f" (default: {_shown(extra['default'])})"
        groups[f in required].add_argument(_flag(f.name), help=text, **extra)
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="YAML file with any of these settings; flags win over it"
    )
    for action in parser._actions:
        if "--print_config" in action.option_strings:
            action.help, action.metavar = "print all settings as YAML, and stop", ""
        elif "--help" in action.option_strings:
            action.help = "show this, and stop"
    # What the command needs comes first, what every command has last.
    parser._action_groups = sorted(parser._action_groups, key=lambda group: group.title == "options")
    return parser


class _Formatter(argparse.HelpFormatter):
    """argparse's own, with a wider column of flags, and names with a hyphen in one piece."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _config_first(flags: list[str]) -> list[str]:
    """Spell every flag with hyphens and move --config to the front, since the parser lets the last one win."""
    front: list[str] = []
    rest: list[str] = []
    waiting = False
    for flag in flags:
        if waiting:
            front.append(flag)
            waiting = False
            continue
        if flag.startswith("--"):
            name, equals, value = flag.partition("=")
            flag = name.replace("_", "-") + equals + value
            flag = flag.replace("--print-config", "--print_config", 1)
            if name == "--config":
                front.append(flag)
                waiting = not equals
                continue
        rest.append(flag)
    return front + rest


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _plain(hint: Any) -> Any:
    """The type that a person gives: without None, and of a list its items."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    return get_args(hint)[0] if get_origin(hint) is list else hint


def _kind(hint: Any) -> str:
    words = [word for part in get_args(hint) if get_origin(part) is Literal for word in get_args(part)]
    if words and int in get_args(hint):
        return f"a whole number or {', '.join(words)}"
    hint = _plain(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        # Any word on the command line is text; only YAML takes 1 and yes for something else.
        str: "text (quote it)",
        Path: "a path",
    }[hint]


def _metavar(hint: Any) -> str:
    hint = _plain(hint)
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    return {int: "N", float: "X", bool: "false", str: "TEXT", Path: "PATH"}[hint]


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)


def _condensed(message: str, hints: dict[str, Any]) -> str:
    """One line of ours for the parser's several."""
    key = re.match(r'Parser key "(\w+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message, re.DOTALL)
    if key and key[1] in hints:
        return f"{_flag(key[1])}: {repr(value[1]) + ' is ' if value else ''}not {_kind(hints[key[1]])}"
    if missing := re.match(r"the following arguments are required: (.*)", message):
        return "needs " + ", ".join(_flag(name) for name in missing[1].split(", "))
    if alien := re.match(r"(?:unrecognized arguments: (\S+)|Option '(\S+)' is not accepted)", message):
        name = alien[1] or _flag(alien[2])
        known = [_flag(field) for field in hints]
        near = difflib.get_close_matches(name.partition("=")[0].replace("_", "-"), known, n=1)
        what = "flag" if name.startswith("-") else "word"
        return f"unknown {what} {name!r}" + (f" (did you mean {near[0]}?)" if near else "")
    if message.startswith("Problems parsing config"):
        places = re.findall(r"line \d+, column \d+", message)
        return "--config: not valid YAML" + (f" at {places[-1]}" if places else "")
    if message.startswith("Unexpected config"):
        return "--config: not a mapping from settings to values"
    if message.endswith("object is not iterable"):
        lists = [field for field, hint in hints.items() if get_origin(hint) is list]
        return f"--config: {', '.join(lists[:-1])} and {lists[-1]} must be lists"
    message = re.sub(r'Parser key "(\w+)"', lambda found: _flag(found[1]), message)
    return " ".join(message.removeprefix("argument ").split())


def _unknown(name: str) -> str:
    what = "flag" if name.startswith("-") else "command"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"no {what} {name!r}" + (f"; did you mean medclr {near[0]}?" if near else "; see medclr --help")


def _overview() -> str:
    commands = "\n".join(f"  {name:<11} {command.help}" for name, command in COMMANDS.items())
    return f"""\
usage: medclr COMMAND [flags]

Teach an encoder from unlabelled scans, and measure how many labels that saves.

commands:
{commands}

medclr COMMAND --help lists the flags of one command. A YAML file can hold them (--config FILE); flags win over it.
A command that was stopped continues when it is run again on the same --out.

examples:
  medclr demo
  medclr pretrain --data scans/ --holdout labels.csv
  medclr finetune --labels labels.csv
  medclr predict --data new_scans/
  medclr efficiency --labels labels.csv

exit codes:
  0 done · 1 failed · 2 wrong usage · 3 done, but more was skipped than allowed · 130, 143 interrupted

  --version   show the version, and stop
  --debug     with any command: show the traceback of a failure; it may name patients"""


def _verdict(error: BaseException, config: Any) -> tuple[int, str]:
    """The exit code and the line for what ended the command. An exception's own text may name a patient."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        code = error.exit_code if isinstance(error, Interrupted) else 128 + signal.SIGINT
        # Without --out the run folder carries the time, and the same command would make another.
        dated = not isinstance(config, DemoConfig) and getattr(config, "out", ...) is None
        again = "with --out set to this run's folder " if dated else ""
        return code, f"medclr: interrupted; run the same command again {again}to continue"
    if isinstance(error, _BadFlags):
        # Of several processes with the same flags, one says so.
        return error.exit_code, str(error) if place().first else ""
    if isinstance(error, Elsewhere):
        return error.exit_code, ""
    if isinstance(error, MedclrError):
        return error.exit_code, f"medclr: {error}"
    if isinstance(error, BrokenPipeError) and _reader_gone():
        return 1, ""
    if isinstance(error, OSError) and error.errno in _OS_ERRORS:
        return 1, f"medclr: {_OS_ERRORS[error.errno]}"
    if "operator torchvision::" in str(error):
        return 1, "medclr: the torchvision here does not fit this torch; uninstall it, or install the one built for it"
    where = _where(error)
    return 1, f"medclr: internal error: {type(error).__name__} in {where}; run again with --debug, and report it"


def _where(error: BaseException) -> str:
    """The innermost line of ours that the error went through."""
    package = Path(__file__).parent
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    return f"{Path(ours[-1].filename).relative_to(package).as_posix()} line {ours[-1].lineno}"


def _reader_gone() -> bool:
    """Whether it is our own output that nobody reads any more, as in `medclr scan | head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not poll.poll(0):
        return False
    # Python flushes once more on its way out; there it must find something that can be written.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _one_line(text: str) -> str:
    # A control character could rewrite what the terminal shows.
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGUSR1 raise `Interrupted` here, and leave forked workers to their parent."""
    owner = os.getpid()

    def handle(signum: int, frame: types.FrameType | None) -> None:
        if os.getpid() == owner:
            raise Interrupted(signum)
        if signum == signal.SIGTERM:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
