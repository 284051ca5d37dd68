"""What one turn of a loop costs, from nvdisasm's listing: instructions along the shortest way round.

A kernel's packed pages are attended by a loop a codec (cpp/backend/cuda/attend_packed.h). Its rare parts (a
larger maximum, queries turned to another coarse row) are branches that the shortest way leaves out; what
every unit needs lies on it, because the loop's products do.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTION = re.compile(r"^\.text\.(\w+):")
LABEL = re.compile(r"^(\.L_\w+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
BRANCH = re.compile(r"\bBRA\b")
TARGET = re.compile(r"`\((\.L_\w+)\)")
LEAVES = re.compile(r"\b(EXIT|RET)\b")


@dataclass(frozen=True)
class Turn:
    """One turn of a loop, the shortest that passes its products."""

    instructions: int
    opcodes: Counter[str]

    @property
    def products(self) -> int:
        """Steps of tensor cores."""
        return self.opcodes["HMMA"]

    @property
    def meets(self) -> bool:
        """Whether the threads of a block wait for each other in it."""
        return self.opcodes["BAR"] > 0


class Function:
    """Basic blocks in the order of their addresses, and where each may go on."""

    def __init__(self, lines: list[str]) -> None:
        self.blocks: list[list[str]] = [[]]
        begins: dict[str, int] = {}
        for line in lines:
            if label := LABEL.match(line):
                if self.blocks[-1]:
                    self.blocks.append([])
                begins[label[1]] = len(self.blocks) - 1
            elif found := INSTRUCTION.match(line):
                self.blocks[-1].append(found[1])
                if BRANCH.search(found[1]) or LEAVES.search(found[1]):
                    self.blocks.append([])
        self.next = [self._after(at, begins) for at in range(len(self.blocks))]

    def _after(self, at: int, begins: dict[str, int]) -> set[int]:
        last = self.blocks[at][-1] if self.blocks[at] else ""
        after = {at + 1} if at + 1 < len(self.blocks) else set()
        target = TARGET.search(last) if BRANCH.search(last) else None
        # A condition stands before the instruction, or as a predicate behind it.
        may_pass = (
            last.startswith("@") or "BRA.DIV" in last or re.search(r"BRA[.\w]* !?U?P\d", last) is not None
        )
        if target and target[1] in begins:
            return {begins[target[1]], *(after if may_pass else ())}
        if LEAVES.search(last):
            return after if may_pass else set()
        return after

    def way_round(self, start: int) -> list[int]:
        """The blocks of the shortest way from a block back to it; empty where there is none."""
        came: dict[int, int] = {}
        queue = [(len(self.blocks[to]), to, start) for to in self.next[start]]
        heapq.heapify(queue)
        while queue:
            length, at, before = heapq.heappop(queue)
            if at in came:
                continue
            came[at] = before
            if at == start:
                way = [start]
                while before != start:
                    way.append(before)
                    before = came[before]
                return way
            for to in self.next[at]:
                if to not in came:
                    heapq.heappush(queue, (length + len(self.blocks[to]), to, at))
        return []

    def turns(self) -> Iterator[Turn]:
        """Of every loop with products, in the order of their addresses."""
        loops: list[tuple[set[int], list[Turn]]] = []
        for at, block in enumerate(self.blocks):
            way = self.way_round(at) if any("HMMA" in line for line in block) else []
            if not way:
                continue
            blocks, turns = set(way), [turn_of([line for part in way for line in self.blocks[part]])]
            for loop in [loop for loop in loops if loop[0] & blocks]:
                loops.remove(loop)
                blocks, turns = blocks | loop[0], loop[1] + turns
            loops.append((blocks, turns))
        for _, turns in sorted(loops, key=lambda loop: min(loop[0])):
            # Ways through a rare part are longer; a loop within has few of the products.
            most = max(turn.products for turn in turns)
            yield min(
                (turn for turn in turns if 2 * turn.products > most), key=lambda turn: turn.instructions
            )


def turn_of(lines: list[str]) -> Turn:
    return Turn(len(lines), Counter(re.sub(r"^@\S+\s+", "", line).split()[0].split(".")[0] for line in lines))


def functions(listing: str) -> dict[str, Function]:
    """The kernels of a listing (`nvdisasm -c`) by their mangled names."""
    lines: dict[str, list[str]] = {}
    name = ""
    for line in listing.splitlines():
        if found := FUNCTION.match(line):
            name = found[1]
            lines[name] = []
        elif name:
            lines[name].append(line)
    return {name: Function(body) for name, body in lines.items()}
