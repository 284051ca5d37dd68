"""A board's sysfs, made up: the rate goes down before it throttles and before frames are old, and up
again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mosaic_edge.serve.rate import HOLD_S, Board, RateGovernor, read_board


def write(root: Path, **files: object) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def zone(root: Path, number: int, kind: str, temp: object, **trips: int) -> None:
    files: dict[str, object] = {"type": kind, "temp": temp}
    for i, (trip, limit) in enumerate(trips.items()):
        files |= {f"trip_point_{i}_type": trip, f"trip_point_{i}_temp": limit}
    write(root / f"class/thermal/thermal_zone{number}", **files)


def clock(root: Path, cpu: int, may: int, can: int = 1510400) -> None:
    folder = root / f"devices/system/cpu/cpu{cpu}/cpufreq"
    write(folder, scaling_max_freq=may, cpuinfo_max_freq=can)


def test_the_board_says_how_far_it_is_from_throttling_and_what_nvpmodel_left_of_the_clock(
    tmp_path: Path,
) -> None:
    zone(tmp_path, 0, "cpu-thermal", 61500, active=45000, passive=99000, critical=104500)
    zone(tmp_path, 1, "gpu-thermal", "", passive=99000)  # asleep: it cannot be read
    zone(tmp_path, 2, "tj-thermal", 91250, critical=104500, hot=97000)
    zone(tmp_path, 3, "battery", 99999)
    for cpu in range(4):
        clock(tmp_path, cpu, 1510400 if cpu < 2 else 755200)
    assert read_board(tmp_path) == Board(pytest.approx(5.75), "tj-thermal", 0.75)


def test_a_machine_that_says_nothing_is_cool_and_whole(tmp_path: Path) -> None:
    assert read_board(tmp_path) == Board(None, "", 1.0)


class Played:
    """A governor, whose frames take `seconds` of the full clock on a board that the test turns."""

    def __init__(self, root: Path, fps: float = 4.0, seconds: float = 0.05) -> None:
        self.root, self.seconds, self.now = root, seconds, 1000.0
        self.heat(50000)
        self.said: list[str] = []
        self.governor = RateGovernor(fps, lambda: read_board(root), self.said.append)

    def heat(self, temp: int) -> None:
        zone(self.root, 0, "cpu-thermal", temp, passive=99000)

    def run(self, seconds: float) -> list[float]:
        """The rates of that long."""
        rates, end = [], self.now + seconds
        while self.now < end:
            rates.append(self.governor.step(self.seconds / read_board(self.root).clock_share, self.now))
            self.now += 1 / self.governor.fps
        return rates


def test_a_board_that_is_cool_and_free_is_left_alone(tmp_path: Path) -> None:
    assert set(Played(tmp_path).run(300)) == {4.0}


def test_heat_halves_the_rate_step_by_step_down_to_an_eighth_and_coolness_brings_it_back(
    tmp_path: Path,
) -> None:
    board = Played(tmp_path)
    board.run(11)
    board.heat(95000)  # 4 degrees below
    first = board.run(HOLD_S)
    assert set(first) == {4.0, 2.0}, "one step, and then it is waited what that does"
    assert board.run(200)[-1] == 0.5
    assert "cpu-thermal is 4 degrees below throttling" in board.said[0]
    board.heat(92000)  # neither hot nor cool
    assert set(board.run(200)) == {0.5}
    board.heat(70000)
    assert board.run(200)[-1] == 4.0
    assert len(board.said) == 6


def test_a_clock_that_nvpmodel_lowered_counts_before_frames_are_old(tmp_path: Path) -> None:
    board = Played(tmp_path, seconds=0.15)  # 0.6 of the time between two
    clock(tmp_path, 0, 1510400)
    assert set(board.run(60)) == {4.0}
    clock(tmp_path, 0, 755200)  # half: 1.2 of it
    rates = board.run(8)
    late = sum(1 / rate < 0.3 for rate in rates)
    assert rates[-1] == 2.0 and late <= 9, "at once when it is read, every two seconds"
    clock(tmp_path, 0, 1510400)
    assert board.run(60)[-1] == 2.0, "0.6 at the old rate would be no room"


def test_a_model_that_takes_longer_than_its_share_is_given_less(tmp_path: Path) -> None:
    board = Played(tmp_path, fps=2.0, seconds=0.45)
    assert board.run(20)[-1] == 1.0
    assert "a frame takes 0.45 s" in board.said[0]
