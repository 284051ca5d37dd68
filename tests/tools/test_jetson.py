"""Jetson: the service's command, scripts that show before they change, a trace of lines as boards print."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import cli
from mosaic_edge.config import parse_bytes
from mosaic_edge.profiles import read_profile
from mosaic_edge.serve.account import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
JETSON = ROOT / "jetson"

# As tegrastats prints them: JetPack 6 on Orin Nano, JetPack 5 on AGX Orin, JetPack 7 on Thor idle and busy.
ORIN_NANO = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) CPU [1%@1420,2%@1420,"
    "0%@1420,2%@1420,2%@729,off] GR3D_FREQ 63% cpu@50.031C soc2@49.031C soc0@50C gpu@49.031C tj@50.25C "
    "soc1@50.25C VDD_IN 4824mW/4800mW VDD_CPU_GPU_CV 518mW/518mW VDD_SOC 1475mW/1475mW"
)
AGX_ORIN = (
    "RAM 4722/30536MB (lfb 5817x4MB) SWAP 0/15268MB (cached 0MB) CPU [0%@729,off,off,2%@729] "
    "EMC_FREQ 7%@3199 GR3D_FREQ 45%@[1300,1298] VIC_FREQ 729 APE 174 CV0@-256C CPU@45.5C tj@46.4C "
    "VDD_GPU_SOC 3205mW/3205mW VDD_CPU_CV 801mW/801mW VIN_SYS_5V0 4048mW/4048mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 604mW/604mW"
)
THOR = (
    "05-17-2026 10:00:32 RAM 4208/125773MB (lfb 31x4MB) SWAP 0/2048MB (cached 0MB) CPU [1%@972,0%@972,3%@972,"
    "0%@972] EMC_FREQ 0%@665 GR3D_FREQ @[0,0,0] NVENC0_FREQ @0 NVDEC0_FREQ @0 VIC off PVA0_FREQ off APE 300 "
    "cpu@34.468C tj@34.5C soc012@33.781C soc345@34.5C VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 4165mW/4165mW "
    "VIN_SYS_5V0 4126mW/4126mW"
)
THOR_BUSY = (
    "05-14-2026 21:36:35 RAM 26063/125772MB (lfb 35x4MB) CPU [2%@972] GR3D_FREQ 99%@[1098,1098,1575] "
    "VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW"
)


def load_trace() -> Any:
    spec = importlib.util.spec_from_file_location("tegrastats_trace", JETSON / "tegrastats_trace.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trace = load_trace()


# The service's command


class Camera(socketserver.ThreadingTCPServer):
    """Sends `video` again and again to whoever connects: a stream without end."""

    daemon_threads = True
    block_on_close = False
    video = b""

    class Stream(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while True:
                    self.request.sendall(self.server.video)  # type: ignore[attr-defined]


def test_live_answers_over_its_socket_writes_its_account_and_ends_well_on_sigterm(
    tmp_path: Path, make_video: Any
) -> None:
    account = tmp_path / "account.csv"
    before = ",".join(COLUMNS) + "\nwhat a run before wrote\n"
    account.write_text(before)
    socket_path = (
        Path(tempfile.gettempdir()) / f"mosaic-{os.getpid()}.sock"
    )  # a socket's path holds 107 bytes
    with socket.socket(socket.AF_UNIX) as left:  # by a process that was killed
        left.bind(str(socket_path))
    with Camera(("127.0.0.1", 0), Camera.Stream) as camera:
        camera.video = make_video("clip.ts", times=[i / 10 for i in range(50)]).read_bytes()
        threading.Thread(target=camera.serve_forever, daemon=True).start()
        options = {
            "source": f"tcp://127.0.0.1:{camera.server_address[1]}", "memory": "2MiB", "policy": "uniform",
            "fps": "5", "socket": socket_path, "account": account, "every": "0.001",
        }  # fmt: skip
        command = [sys.executable, "-m", "mosaic_edge", "live", "--json"]
        command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 100
            while account.read_text().count("\n") < 10:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(str(socket_path))
                with asked.makefile("rw") as line:
                    line.write("what colour was the ball ?\nflurb\n")
                    line.flush()
                    answer, refused = json.loads(line.readline()), json.loads(line.readline())
            process.terminate()
            out, err = process.communicate(timeout=100)
        camera.shutdown()
    assert process.returncode == 0, err
    assert answer["answer"]
    assert answer["evidence"]
    assert set(refused) == {"error"}
    assert not socket_path.exists()
    assert (tmp_path / "account.csv.1").read_text() == before
    rows = list(csv.DictReader(account.open()))
    assert int(rows[-1]["frames"]) == json.loads(out)["frames"] >= 9
    for row in rows:
        assert 0 < int(row["taken_bytes"]) <= int(row["cap_bytes"]) == 2 << 20
        places = ("exact", "quantised", "spilled", "collapsed", "dropped")
        assert sum(int(row[place]) for place in places) == int(row["seen"])


def test_live_ends_with_its_source_and_says_why_where_that_breaks_off(make_video: Any, capfd: Any) -> None:
    video = make_video(times=[i / 10 for i in range(20)])
    options = ["--memory", "2MiB", "--policy", "uniform", "--fps", "5", "--json"]
    assert cli.main(["live", "--source", str(video), *options]) == 0
    assert json.loads(capfd.readouterr().out)["frames"] == 10
    assert cli.main(["live", "--source", "/dev/video97", *options]) == 1
    said = capfd.readouterr()
    assert "/dev/video97: no frame could be read" in said.err
    assert json.loads(said.out)["frames"] == 0
    assert cli.main(["live", "--source", str(video), *options, "--every", "0"]) == 2


def test_the_service_starts_live_with_options_it_has_under_a_limit_above_every_cap(capfd: Any) -> None:
    unit = (JETSON / "mosaic-edge.service").read_text()
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and line[0] not in "#;")
    words = unit[unit.index("ExecStart=") :].replace("\\\n", " ").split("\n")[0].split()
    assert words[1] == "live"
    capfd.readouterr()
    assert cli.main(["live", "--help"]) == 0
    known = capfd.readouterr().out
    for word in words[2:]:
        if word.startswith("--"):
            assert word in known
    assert settings["Restart"] == "on-failure"
    assert settings["ProtectSystem"] == "strict"
    environment = dict(
        line.removeprefix("Environment=").split("=", 1)
        for line in unit.splitlines()
        if line.startswith("Environment=")
    )
    cap = parse_bytes(read_profile(environment["MOSAIC_PROFILE"]).session["memory"])
    assert parse_bytes(settings["MemoryMax"].replace("G", "GiB")) > cap


# Scripts


def bash(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(a) for a in arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("script", ["jetson/prepare.sh", "tools/aarch64"])
def test_bash_reads_the_scripts(script: str) -> None:
    assert bash("bash", "-n", ROOT / script).returncode == 0


def test_aarch64_says_what_cuda_needs_and_which_tests_it_leaves_out() -> None:
    script = ROOT / "tools/aarch64"
    shown = bash(script, "--cuda", "--dry-run").stdout
    assert "static runtime" in shown
    assert "would leave out tests/cpp/policy and most of tests/cpp/runtime" in shown
    assert "leave out" not in bash(script, "--all", "--dry-run").stdout
    folders = set(
        re.findall(r"\*cpp/(\w+)/\*", script.read_text())
    )  # a filter that matches nothing runs nothing
    assert folders == {file.name for file in (ROOT / "tests/cpp").iterdir() if file.is_dir()} - {
        "support",
        "policy",
    }
    sources = [file.read_text() for file in (ROOT / "tests/cpp").rglob("*.cc")]
    cases = [name for text in sources for name in re.findall(r'TEST_CASE\(\s*"([^"]*)"', text)]
    (named,) = re.findall(r"--test-case='([^']*)'", script.read_text())
    assert cases.count(named) == 1


def test_every_script_shows_what_it_would_do_and_does_nothing(tmp_path: Path) -> None:
    for script in ("jetson/prepare.sh", "jetson/tegrastats_trace.py", "tools/aarch64"):
        shown = subprocess.run(
            [ROOT / script, "--dry-run"], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert shown.returncode == 0, shown.stderr
        assert "would" in shown.stdout
        assert not list(tmp_path.iterdir())
        refused = subprocess.run([ROOT / script, "--nonsense"], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "--nonsense" in refused.stderr


@pytest.fixture
def board(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A Jetson's files, and tools that keep their state in files: the root, and an environment."""
    root, tools = tmp_path / "root", tmp_path / "tools"
    files = {
        "proc/meminfo": "MemTotal: 7800000 kB\nMemFree: 1 kB\nMemAvailable: 3000000 kB\nCached: 3000000 kB\n",
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 9 0 5\n"
        "/dev/nvme0n1p3 partition 9 0 -2\n",
        "proc/sys/vm/swappiness": "60\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\nCPU_ONLINE CORE_0 1\n< PM_CONFIG DEFAULT=1 >\n",
        "mode": "1\n",
        "clocks": "low\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    scripts = {
        "nvpmodel": 'if [ "$1" = -q ]; then echo "NV Power Mode: X"; cat "$R/mode"; '
        'else echo "$2" >"$R/mode"; fi',
        "jetson_clocks": 'case "${1:-}" in --store) cp "$R/clocks" "$2" ;; --restore) cp "$2" "$R/clocks" ;; '
        '*) echo high >"$R/clocks" ;; esac',
        "swapoff": 'sed -i "\\#^$1 #d" "$R/proc/swaps"',
        "swapon": 'echo "$3 partition 9 0 $2" >>"$R/proc/swaps"',
    }
    tools.mkdir()
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\nR={root}\n{text}\n")
        (tools / name).chmod(0o755)
    return root, {"PATH": f"{tools}:{os.environ['PATH']}", "MOSAIC_PREPARE_ROOT": str(root)}


def contents(root: Path) -> dict[str, list[str]]:
    return {
        str(f.relative_to(root)): sorted(f.read_text().splitlines()) for f in root.rglob("*") if f.is_file()
    }


def test_prepare_shows_without_changing_applies_once_recorded_and_undoes_to_what_was(board: Any) -> None:
    root, environment = board
    before = contents(root)
    shown = bash(JETSON / "prepare.sh", **environment)
    assert shown.returncode == 0, shown.stderr
    for said in (
        "nvpmodel -m 2", "jetson_clocks --store", "swapoff /dev/zram0", "10 to /proc/sys/vm/swappiness",
        "less than half", "page cache as taken",
    ):  # fmt: skip
        assert said in shown.stdout
    assert "nvme" not in shown.stdout
    assert contents(root) == before
    for _ in range(2):  # the second must not record what the first one did
        applied = bash(JETSON / "prepare.sh", "--apply", **environment)
        assert applied.returncode == 0, applied.stderr
        after = contents(root)
        assert (after["mode"], after["clocks"]) == (["2"], ["high"])
        assert after["proc/sys/vm/swappiness"] == ["10"]
        assert [line.split()[0] for line in after["proc/swaps"]] == ["/dev/nvme0n1p3", "Filename"]
    undone = bash(JETSON / "prepare.sh", "--undo", **environment)
    assert undone.returncode == 0, undone.stderr
    assert contents(root) == before
    again = bash(JETSON / "prepare.sh", "--undo", **environment)
    assert again.returncode == 1
    assert "nothing is recorded" in again.stderr


def test_prepare_leaves_alone_what_it_is_told_to(board: Any) -> None:
    root, environment = board
    applied = bash(
        JETSON / "prepare.sh", "--apply", "--mode", "15W", "--no-clocks", "--keep-zram", **environment
    )
    assert applied.returncode == 0, applied.stderr
    after = contents(root)
    assert (after["mode"], after["clocks"]) == (["0"], ["low"])
    assert any(line.startswith("/dev/zram0") for line in after["proc/swaps"])
    refused = bash(JETSON / "prepare.sh", "--apply", "--mode", "99W", **environment)
    assert refused.returncode == 1
    assert "MAXN_SUPER" in refused.stderr


# The trace


def test_a_line_of_orin_nano_gives_memory_load_heat_and_power() -> None:
    row = trace.parse(ORIN_NANO)
    assert row == {
        "unix_seconds": datetime(2025, 6, 18, 11, 25, 24).timestamp(),
        "ram_used_bytes": 3452 << 20, "ram_total_bytes": 7620 << 20, "swap_used_bytes": 1518 << 20,
        "cpu_percent": 1.4, "gpu_percent": 63, "hottest_c": 50.25,
        "board_mw": 4824, "VDD_IN_mw": 4824, "VDD_CPU_GPU_CV_mw": 518, "VDD_SOC_mw": 1475,
    }  # fmt: skip


def test_a_line_of_agx_orin_has_no_time_no_whole_board_and_sensors_that_are_off() -> None:
    row = trace.parse(AGX_ORIN)
    assert (row["gpu_percent"], row["gpu_mhz"], row["emc_percent"]) == (45, 1300, 7)
    assert (row["cpu_percent"], row["hottest_c"]) == (1.0, 46.4)
    assert row["VDDQ_VDD2_1V8AO_mw"] == 604
    assert not {"unix_seconds", "board_mw", "NC_mw"} & set(row)


def test_thor_at_rest_says_clocks_but_no_load_and_that_is_not_nought() -> None:
    row = trace.parse(THOR)
    assert (row["ram_used_bytes"], row["gpu_mhz"], row["cpu_percent"]) == (4208 << 20, 0, 1.0)
    assert (row["VDD_GPU_mw"], row["VDD_CPU_SOC_MSS_mw"]) == (0, 4165)
    assert not {"gpu_percent", "board_mw"} & set(row)


def test_thor_at_work_gives_load_the_whole_board_and_a_sensor_below_nought() -> None:
    row = trace.parse(THOR_BUSY)
    assert (row["gpu_percent"], row["gpu_mhz"], row["board_mw"], row["VDD_GPU_mw"]) == (99, 1575, 15004, -392)
    assert "swap_used_bytes" not in row


@pytest.mark.parametrize("line", ["", "tegrastats: permission denied", "RAM off", "CPU [1%@2]"])
def test_what_is_no_line_of_tegrastats_is_passed_over(line: str) -> None:
    assert trace.parse(line) is None


def test_a_replayed_log_lies_beside_the_account_as_it_was_then(tmp_path: Path) -> None:
    began = datetime(2025, 6, 18, 11, 25, 24).timestamp()
    later = ORIN_NANO.replace("11:25:24", "11:25:30").replace("RAM 3452", "RAM 4000")
    (tmp_path / "board.log").write_text("\n".join(["junk", ORIN_NANO, later]))
    from mosaic_edge.serve.account import COLUMNS

    with (tmp_path / "account.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for at, frames in ((began + 1, 3), (began + 5, 7), (began + 7, 9)):
            writer.writerow([at, 0, frames, *[100 + frames] * (len(COLUMNS) - 3)])
        file.write(f"{began + 5.5},1")  # cut off in the middle
    ran = subprocess.run(
        [sys.executable, JETSON / "tegrastats_trace.py", "--replay", "board.log", "--account", "account.csv"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = list(csv.DictReader((tmp_path / "trace" / "trace.csv").open()))
    assert [row["ram_used_bytes"] for row in rows] == [str(3452 << 20), str(4000 << 20)]
    assert [row["frames"] for row in rows] == ["", "7"]
    assert rows[1]["taken_bytes"] == "107"
    assert rows[0]["VDD_IN_mw"] == "4824"
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "trace" / "trace.png").stat().st_size > 1000


def test_lines_without_a_time_follow_one_another_by_the_interval() -> None:
    rows = list(trace.timed([AGX_ORIN, "junk", AGX_ORIN], 50.0, 0.5))
    assert [row["unix_seconds"] for row in rows] == [50.0, 50.5]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replay", "none.log"], "none.log"),
        (["--replay", "empty.log"], "no line of tegrastats"),
        (["--replay", "good.log", "--account", "empty.log"], "no account of"),
    ],
)
def test_a_trace_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "empty.log").write_text("frame,cap\n")
    (tmp_path / "good.log").write_text(THOR)
    ran = subprocess.run(
        [sys.executable, JETSON / "tegrastats_trace.py", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert says in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "trace").exists()
