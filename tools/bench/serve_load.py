"""`mosaic-edge serve` under load: `python tools/bench/serve_load.py [--sessions 8] [--seconds 60]`.

A server as users start it, mosaic-tiny, on loopback. Every session is a client of its own (a thread) that
gives it JPEGs of a procedural world at --fps, every other one over a WebSocket, and asks a streamed question
every --ask-every seconds. One more client reads account and metrics twice a second, and another opens and
ends sessions at what is left of the budget. Then the server is told to end while all of them go on.

It fails where more is drawn than the budget, a session takes more than its cap, the server's counts are not
the clients', or the server complains. --write FILE writes the page that docs/results has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from serve_clients import Client, Load, Measured, Server

from mosaic_edge.config import format_bytes

WARM_SECONDS = 2.0
"""Of load before the server is told to end under it."""
CUT_OFF = "a step of the model was cut off"
"""Said where the end came while a model was busy: no fault, under load."""
PARTS = 10
"""Of the run, for memory over time."""

_PAGE = """# `mosaic-edge serve` under load

`{command}`

{cores} cores, clients on the same ones; load average at the end {load_average}, this bench's own in it.
{sessions} sessions of mosaic-tiny under one budget of {budget}, every other one fed over a WebSocket;
{fps:g} JPEGs a second and a streamed question every {ask_every:g} s each, for {seconds:g} s, while a client
reads account and metrics twice a second and another opens sessions until it is told 507 and ends them.

| | p50 | p99 | longest |
|---|---|---|---|
{table}

- Breaches of a cap, counts that differ, complaints of the server: {faults}.
- {frames:,} frames and {questions:,} questions, as the server counted them too;
  {sessions_that_came_and_went:,} sessions came and went, {refused_507:,} were refused with 507.
- The most that was ever drawn: {drawn_peak_bytes:,.0f} of {budget_bytes:,.0f} bytes; the account was read
  {accounts_read:,} times.
- Resident memory of the server, the most in each tenth of the run: {rss} MiB; from the first half to the
  second {growth:+.1f} MiB. Pages and thumbnails become resident as they fill, within what was drawn.
- SIGTERM under the same load, to the end of the process: {sigterm_under_load_seconds:.1f} s.
"""


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load a server, and what came of it."""
    server = Server(options.memory)
    try:
        load = Load(server, options, options.seconds)
        load.start()
        load.join()
        metrics = Client(server).metrics()
        for served in Client(server).json("GET", "/v1/sessions")[1]["data"]:
            Client(server).json("DELETE", f"/v1/sessions/{served['id']}")
        more = Load(server, options, 60.0)  # which the end of the server cuts off
        more.start()
        time.sleep(WARM_SECONDS)
    finally:
        end_seconds, complaints = server.end()
    more.join()
    measured = load.measured
    told = (metrics["frames_total"], metrics["questions_total"])
    if told != measured.counts:
        measured.faults.append(f"the server counts {told} frames and questions, clients {measured.counts}")
    measured.faults += [line for line in complaints.splitlines() if CUT_OFF not in line]
    return {
        **{name: getattr(options, name) for name in ("sessions", "seconds", "fps", "ask_every")},
        **result_of(measured),
        "budget_bytes": metrics["budget_bytes"],
        "drawn_peak_bytes": metrics["budget_drawn_peak_bytes"],
        "sigterm_under_load_seconds": round(end_seconds, 2),
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
        "faults": measured.faults,
    }


def result_of(measured: Measured) -> dict[str, Any]:
    """Counts, percentiles in milliseconds, and memory at PARTS moments."""
    parts = np.array_split(np.array(measured.rss), min(PARTS, len(measured.rss)))
    half = len(measured.rss) // 2
    return {
        "frames": measured.counts[0],
        "questions": measured.counts[1],
        "put": percentiles(measured.puts),
        "socket": percentiles(measured.sockets),
        "first_piece": percentiles(measured.firsts),
        "answer": percentiles(measured.answers),
        "late": percentiles(measured.late),
        "accounts_read": len(measured.rss),
        "sessions_that_came_and_went": measured.churned,
        "refused_507": measured.refused,
        "rss_over_time_bytes": [int(part.max()) for part in parts],
        "rss_growth_second_half_bytes": max(measured.rss[half:]) - max(measured.rss[:half]) if half else None,
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    if not seconds:
        return {}
    return {f"p{q}_ms": round(1e3 * float(np.percentile(seconds, q)), 1) for q in (50, 99, 100)}


def page(result: dict[str, Any], command: str) -> str:
    """As docs/results has it."""
    rows = {
        "PUT of a frame, until it was taken in": result["put"],
        "frame over a WebSocket, until it was taken in": result["socket"],
        "question, to the first piece of its answer": result["first_piece"],
        "question, to the end of its answer": result["answer"],
        "how late a frame was sent": result["late"],
    }
    table = "\n".join(
        f"| {name} | " + " | ".join(f"{row[f'p{q}_ms']:,.0f} ms" for q in (50, 99, 100)) + " |"
        for name, row in rows.items()
    )
    return _PAGE.format(
        **{**result, "faults": "; ".join(result["faults"]) or "none"},
        command=command,
        table=table,
        budget=format_bytes(int(result["budget_bytes"])),
        rss=", ".join(f"{taken / (1 << 20):.1f}" for taken in result["rss_over_time_bytes"]),
        growth=(result["rss_growth_second_half_bytes"] or 0) / (1 << 20),
    )


def main(arguments: list[str]) -> int:
    """Run it, print the figures; 1 where something was not as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second of each session")
    parser.add_argument("--ask-every", type=float, default=5.0, help="seconds between questions of a session")
    parser.add_argument("--memory", default="20MiB", help="the budget")
    parser.add_argument("--session-memory", default="2MiB")
    parser.add_argument("--write", type=Path, help="the page of the result")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result = run(options)
    if options.write is not None:
        command = f"python tools/bench/serve_load.py --seconds {options.seconds:g} --write {options.write}"
        options.write.write_text(page(result, command), encoding="utf-8")
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            shown = (
                format_bytes(value) if name.endswith("_bytes") and isinstance(value, int | float) else value
            )
            print(f"{name.replace('_', ' '):32} {shown}")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
