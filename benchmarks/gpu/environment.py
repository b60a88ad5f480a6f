"""Make slmjax's dependencies importable where pip has no index, without touching what the machine has.

Installs into --target those wheels of a directory whose package is not there yet (never another jax), and exits with 1
and the line that downloads the rest when a dependency of pyproject.toml is still missing.
"""

import argparse
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOWNLOAD = (
    "python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 "
    "--platform manylinux2014_x86_64 -d wheels"
)


def normalized(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_there(name: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def required() -> list[str]:
    """The names of the dependencies in pyproject.toml, without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in project["dependencies"]]


def missing(names: list[str]) -> list[str]:
    """Those of the names, and of what they require in turn, that are not installed."""
    absent: dict[str, None] = {}
    seen: set[str] = set()
    queue = [normalized(name) for name in names]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            absent[name] = None
            continue
        plain = (line for line in requirements if ";" not in line)  # of those with a marker, few are meant for here
        queue += [normalized(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in plain]
    return sorted(absent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels")
    parser.add_argument("--target", type=Path, required=True, help="directory that is on PYTHONPATH")
    args = parser.parse_args()
    wheels = sorted(args.wheels.glob("*.whl")) if args.wheels.is_dir() else []
    new = [wheel for wheel in wheels if not is_there(wheel.name.partition("-")[0])]
    if new:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*command, "--target", str(args.target), *map(str, new)], check=True)
        print(f"installed for this run: {', '.join(wheel.name.partition('-')[0] for wheel in new)}")
    sys.path.append(str(args.target))
    importlib.invalidate_caches()
    if absent := missing(required()):
        sys.exit(
            f"error: this Python lacks {', '.join(absent)}. Where there is a network, fetch their wheels for Python "
            f"3.12 and carry the directory along:\n  {DOWNLOAD} {' '.join(absent)}"
        )


if __name__ == "__main__":
    main()
