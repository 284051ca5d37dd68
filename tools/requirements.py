"""`tools/requirements.py EXTRA`: what mosaic_edge and that extra of pyproject.toml need, one a line.

For tools/setup, which installs it while the package compiles. An extra that names others has theirs too.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; nothing is installed yet but pip
    from pip._vendor import tomli as tomllib

OWN = re.compile(r"mosaic_edge\[([\w, -]+)\]")


def requirements(project: dict[str, object], extra: str) -> list[str]:
    """Those of the project's table, then the extra's, each once; KeyError: there is no such extra."""
    found = list(project["dependencies"])
    for line in project["optional-dependencies"][extra]:
        own = OWN.fullmatch(line)
        if own is None:
            found.append(line)
        else:
            found += [
                needed for other in own[1].split(",") for needed in requirements(project, other.strip())
            ]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    table = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    print("\n".join(requirements(table["project"], sys.argv[1])))
