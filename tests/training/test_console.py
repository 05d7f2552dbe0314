from __future__ import annotations

import io
import re

from training.console import Console


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_off_a_terminal_progress_is_a_line_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(stream, terminal=False, clock=clock)
    with console.task("epoch 1/2", 100, "images") as advance:
        for _ in range(100):
            clock.now += 0.25
            advance(1)
    assert stream.getvalue().splitlines() == [
        "epoch 1/2: 40 of 100 images, 4 a second, 15 s left",
        "epoch 1/2: 80 of 100 images, 4 a second, 5 s left",
    ]


def test_on_a_terminal_a_bar_is_drawn_and_removed() -> None:
    stream = io.StringIO()
    console = Console(stream, terminal=True)
    with console.task("decode", 10, "images") as advance:
        advance(10)
    console.say("done")
    assert "done\n" in stream.getvalue()


def test_a_line_said_beside_a_bar_stands_on_a_line_of_its_own() -> None:
    stream = io.StringIO()
    console = Console(stream, terminal=True)
    with console.task("epoch 1/2", 10, "images") as advance:
        advance(3)
        console.say("stopped [at] step 3")
    lines = re.split(r"[\r\n]", stream.getvalue())
    said = [line for line in lines if "stopped" in line]

    assert len(said) == 1
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said[0]) == "stopped [at] step 3"


def test_control_characters_do_not_reach_the_terminal() -> None:
    for terminal in (False, True):
        stream = io.StringIO()
        console = Console(stream, terminal=terminal)
        console.say("class \x1b]0;owned\x07 \u732b\rx")
        assert stream.getvalue() == "class  ]0;owned  \u732b x\n"
    with console.task("decode", 10, "images") as advance:
        advance(3)
        console.say("one \x1b]0;two\x07")
    assert "\x1b]0;" not in stream.getvalue()
