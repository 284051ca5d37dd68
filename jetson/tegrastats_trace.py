#!/usr/bin/env python3
"""Trace what the board says of itself (tegrastats) beside our own memory account, as a CSV and a plot.

    jetson/tegrastats_trace.py --out trace --account /var/lib/mosaic-edge/account.csv    # until Ctrl-C
    jetson/tegrastats_trace.py --out trace --replay board.log --account account.csv      # a recorded log

The account is the file of `mosaic-edge live --account FILE`. A row of the trace is one line of tegrastats and
the last row of the account at or before it. An empty cell is a value the board did not say: JetPack 7 on Thor
may print no load of the GPU, only its clocks. Needs Python 3.10 and nothing else; the plot needs matplotlib,
and is left out without it.
"""

from __future__ import annotations

import argparse
import bisect
import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

MIB = 1 << 20
_TIME = re.compile(r"^(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d) ")
_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
_SWAP = re.compile(r"\bSWAP (\d+)/(\d+)MB")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_EMC = re.compile(r"\bEMC_FREQ (\d+)%")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?")
_HEAT = re.compile(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b")
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW(?:/-?\d+mW)?")

FIELDS = (
    "unix_seconds", "ram_used_bytes", "ram_total_bytes", "swap_used_bytes", "cpu_percent", "emc_percent",
    "gpu_percent", "gpu_mhz", "hottest_c", "board_mw",
)  # fmt: skip
ACCOUNT = ("frames", "rss_bytes", "taken_bytes", "cap_bytes", "dram_used_bytes", "disk_used_bytes", "seen")
WHOLE_BOARD = ("VDD_IN", "VIN")
"""Rails that carry everything: Orin Nano and NX, Thor. AGX Orin has none, and its rails overlap."""
Row = dict[str, float | str]


def parse(line: str) -> Row | None:
    """One line of tegrastats as FIELDS, and a "NAME_mw" for every rail; None where it is no such line.

    What the line does not say is left out. The first number of "A mW/B mW" is now, the second an average.
    """
    ram = _RAM.search(line)
    if ram is None:
        return None
    row: Row = {"ram_used_bytes": int(ram[1]) * MIB, "ram_total_bytes": int(ram[2]) * MIB}
    if found := _TIME.match(line):  # local time of the board, to the second
        row["unix_seconds"] = datetime.strptime(found[1], "%m-%d-%Y %H:%M:%S").timestamp()
    if found := _SWAP.search(line):
        row["swap_used_bytes"] = int(found[1]) * MIB
    if found := _CPU.search(line):
        cores = [int(load) for load in re.findall(r"(\d+)%", found[1])]
        if cores:  # of those that are on
            row["cpu_percent"] = round(sum(cores) / len(cores), 1)
    if found := _EMC.search(line):
        row["emc_percent"] = int(found[1])
    if found := _GPU.search(line):
        if found[1]:
            row["gpu_percent"] = int(found[1])
        if found[2]:
            row["gpu_mhz"] = max(int(clock) for clock in found[2].strip(",").split(","))
    heat = [float(degrees) for _, degrees in _HEAT.findall(line) if float(degrees) > -200]  # -256: off
    if heat:
        row["hottest_c"] = max(heat)
    rails = {name: int(power) for name, power in _RAIL.findall(line) if name != "NC"}
    whole = next((rails[name] for name in WHOLE_BOARD if name in rails), None)
    if whole is not None:
        row["board_mw"] = whole
    row.update({f"{name}_mw": power for name, power in rails.items()})
    return row


def read_account(path: Path) -> list[Row]:
    """Rows of `mosaic-edge live --account`, oldest first; a row that is still being written is left out."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = {"unix_seconds", *ACCOUNT} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path}: no account of `mosaic-edge live`; it lacks {', '.join(sorted(missing))}"
            )
        rows = [row for row in reader if all(row[name] for name in ("unix_seconds", *ACCOUNT))]
    return [{name: float(row[name]) for name in ("unix_seconds", *ACCOUNT)} for row in rows]


def beside(trace: Iterable[Row], account: list[Row]) -> Iterator[Row]:
    """Every row of `trace` with the account as it was then; without where there was none yet."""
    times = [float(row["unix_seconds"]) for row in account]
    for row in trace:
        found = bisect.bisect_right(times, float(row["unix_seconds"])) - 1
        yield {**row, **({name: int(float(account[found][name])) for name in ACCOUNT} if found >= 0 else {})}


def timed(lines: Iterable[str], began: float, interval: float) -> Iterator[Row]:
    """The lines that parse; one without a time (JetPack 4) is `interval` seconds after the one before."""
    now = began - interval
    for line in lines:
        row = parse(line)
        if row is not None:
            now = float(row.setdefault("unix_seconds", now + interval))
            yield row


def write_csv(path: Path, rows: list[Row]) -> None:
    """FIELDS, the account's, then the rails this board has."""
    known = (*FIELDS, *ACCOUNT)
    rails = dict.fromkeys(name for row in rows for name in row if name not in known)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*known, *rails], restval="")
        writer.writeheader()
        writer.writerows(rows)


def plot(path: Path, rows: list[Row]) -> None:
    """Bytes above, load in the middle, power below. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    began = float(rows[0]["unix_seconds"])
    parts = (
        ("GiB", 1 << 30, ("ram_used_bytes", "rss_bytes", "cap_bytes", "taken_bytes", "dram_used_bytes")),
        ("percent", 1, ("cpu_percent", "gpu_percent", "emc_percent")),
        (
            "W",
            1000,
            ("board_mw", *(name for name in rows[-1] if name.endswith("_mw") and name != "board_mw")),
        ),
    )
    for axes, (unit, scale, names) in zip(figure.subplots(3, 1, sharex=True), parts, strict=True):
        for name in names:
            said = [row for row in rows if name in row]
            if said:
                seconds = [float(row["unix_seconds"]) - began for row in said]
                axes.plot(seconds, [float(row[name]) / scale for row in said], label=name.rsplit("_", 1)[0])
        axes.set(ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    axes.set(xlabel="seconds")
    figure.savefig(path, dpi=120)


def _live(command: list[str]) -> Iterator[str]:
    """Lines of tegrastats until it ends, or until Ctrl-C or SIGTERM here, which ends it too."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as board:
        assert board.stdout is not None
        try:
            yield from board.stdout
        except KeyboardInterrupt:
            pass
        finally:
            board.terminate()


def main() -> int:
    """Trace, then write; a line on stderr and 1 for what cannot be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("trace"), help="folder of trace.csv and trace.png")
    parser.add_argument("--replay", type=Path, help="a log of tegrastats --logfile, instead of running it")
    parser.add_argument("--account", type=Path, help="the CSV of mosaic-edge live --account")
    parser.add_argument("--interval", type=int, default=1000, help="milliseconds between lines")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    wanted = parser.parse_args()
    if wanted.interval < 1:
        parser.error(f"--interval {wanted.interval}: expected milliseconds from 1 on")
    command = ["tegrastats", "--interval", str(wanted.interval)]
    if wanted.dry_run:
        print(f"would read {wanted.replay or ' '.join(command)}")
        print(f"would lay {wanted.account or 'no account'} beside it")
        print(f"would write {wanted.out / 'trace.csv'} and {wanted.out / 'trace.png'}")
        return 0
    try:
        if wanted.replay is None and shutil.which(command[0]) is None:
            raise ValueError("tegrastats is not on this machine; --replay FILE reads a recorded log")
        lines = wanted.replay.read_text().splitlines() if wanted.replay else _live(command)
        rows = list(timed(lines, time.time(), wanted.interval / 1000))
        if not rows:
            raise ValueError(f"{wanted.replay or command[0]}: no line of tegrastats in it")
        if wanted.account is not None:
            rows = list(beside(rows, read_account(wanted.account)))
        wanted.out.mkdir(parents=True, exist_ok=True)
        write_csv(wanted.out / "trace.csv", rows)
    except (OSError, ValueError) as error:
        print(f"tegrastats_trace: {error}", file=sys.stderr)
        return 1
    print(f"{len(rows)} rows in {wanted.out / 'trace.csv'}")
    try:
        plot(wanted.out / "trace.png", rows)
    except ModuleNotFoundError as error:
        print(f"tegrastats_trace: no plot: {error.name} is not installed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
