"""Make slmjax's dependencies importable where pip has no index, without touching what the machine has.

Installs into --target those wheels of a directory whose package is not there yet (never another jax). What is missing
then is named with the line that downloads it; the status is 1 only where slmjax cannot be imported without it, or where
jax has no GPU and --dry-run was not given.
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
    parser.add_argument("--dry-run", action="store_true", help="a CPU will do")
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
        print(
            f"not installed here: {', '.join(absent)}. Where there is a network, fetch their wheels for Python 3.12 "
            f"and carry the directory along:\n  {DOWNLOAD} {' '.join(absent)}"
        )
    try:
        import jax
        import subjects  # noqa: F401 - all that the parts import of slmjax
    except ImportError as error:
        sys.exit(f"error: slmjax cannot be imported here: {error}.")
    # With JAX_PLATFORMS=cuda,cpu jax goes on with the CPU alone where there is no GPU, and that would be measured.
    if not args.dry_run and jax.default_backend() != "gpu":
        sys.exit("error: jax sees no GPU here; --dry-run checks the script on a CPU.")


if __name__ == "__main__":
    main()
