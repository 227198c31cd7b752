import io
import sys

from medclr.reporting import console
from medclr.reporting.console import counted, progress, say


def test_lines_off_a_terminal_are_plain_and_few(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0, 30.0, 30.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with progress("preparing volumes") as show:
        for done in (1, 2000, 3, 4000):
            show(done, 5856)
    assert capsys.readouterr().out == "preparing volumes: 2,000 of 5,856\npreparing volumes: 4,000 of 5,856\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_leaves_nothing_behind(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress("preparing") as show:
        show(1, 2)
        show(2, 2)
    assert "2/2" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")


def test_say_and_counted(capsys):
    say(counted(1, "volume"))
    say(counted(5856, "volume"))
    say()
    assert capsys.readouterr().out == "1 volume\n5,856 volumes\n\n"


def test_what_a_header_says_cannot_move_the_cursor(capsys):
    say("CT 3D  \x1b[2J\x1b[31mPWN\r\x07 – 5 × 3 °")
    assert capsys.readouterr().out == "CT 3D  ?[2J?[31mPWN?? – 5 × 3 °\n"
