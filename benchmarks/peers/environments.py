"""Install the peers, each into its own environment: `python -m benchmarks.peers.environments [name …]`.

venv and pip make an environment from the pinned packages in `requirements/<name>.txt`. It lies in the user's cache
directory (`$XDG_CACHE_HOME` or `~/.cache`) in `finetuner-peers/<name>`. An environment that exists is replaced; without
names all are made. Each takes one to two gigabytes; to free the space, remove the directory. If a peer cannot be
installed, the error is kept beside its environment and shown in the table.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetuner-peers"


def names() -> list[str]:
    """Return the names of all peers that have a requirements file."""
    return sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))


def python_of(name: str) -> Path | None:
    """Return the interpreter of a peer's environment; None if it is not installed."""
    python = ENVIRONMENTS / name / "bin" / "python"
    return python if python.exists() and not _error_file(name).exists() else None


def problem_of(name: str) -> str:
    """Return why a peer is not installed."""
    if _error_file(name).exists():
        return _error_file(name).read_text().strip()
    return f"not installed: python -m benchmarks.peers.environments {name}"


def install(name: str) -> bool:
    """Make an environment, replacing an old one, and return whether that worked."""
    folder = ENVIRONMENTS / name
    shutil.rmtree(folder, ignore_errors=True)
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    _error_file(name).write_text("its installation was interrupted")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS / f"{name}.txt"]
    finished = subprocess.run(pip, capture_output=True, text=True, check=False)
    if finished.returncode:
        _error_file(name).write_text(error_line(finished.stderr))
        shutil.rmtree(folder)
        return False
    _error_file(name).unlink()
    return True


def error_line(output: str) -> str:
    """Return the line that says what went wrong: the first error of pip, else the last one of Python."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    of_pip = [line for line in lines if line.startswith("ERROR: ")]
    of_python = [line for line in reversed(lines) if "Error: " in line]
    return (of_pip or of_python or lines[-1:] or ["it ended without a word"])[0]


def _error_file(name: str) -> Path:
    return ENVIRONMENTS / f"{name}.error"


def main() -> None:
    """Install the peers that the command line names, by default all."""
    for name in sys.argv[1:] or names():
        print(f"{name}: ", end="", flush=True)
        print("installed" if install(name) else problem_of(name), flush=True)


if __name__ == "__main__":
    main()
