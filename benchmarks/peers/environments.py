"""The environments of the peers, each with its own pinned packages: `python -m benchmarks.peers.environments [name …]`.

An environment is made by venv and pip from `requirements/<name>.txt` in the user's cache directory (below
`$XDG_CACHE_HOME` or `~/.cache`, in `finetuner-peers/<name>`); without names all of them are made anew, one after the
other. They take one to two gigabytes each; remove the directory to be rid of them. What a peer that cannot be
installed says is kept beside its environment and shown in the table.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetuner-peers"


def names() -> list[str]:
    """Every peer that has an environment."""
    return sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))


def python_of(name: str) -> Path | None:
    """The interpreter of a peer's environment; None where it is not installed."""
    python = ENVIRONMENTS / name / "bin" / "python"
    return python if python.exists() and not _error_file(name).exists() else None


def problem_of(name: str) -> str:
    """Why a peer is not installed."""
    if _error_file(name).exists():
        return _error_file(name).read_text().strip()
    return f"not installed: python -m benchmarks.peers.environments {name}"


def install(name: str) -> bool:
    """Make an environment anew and say whether that worked."""
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
    """The line of an output that says what went wrong: the first error of pip's, else the last of Python's."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    of_pip = [line for line in lines if line.startswith("ERROR: ")]
    of_python = [line for line in reversed(lines) if "Error: " in line]
    return (of_pip or of_python or lines[-1:] or ["it ended without a word"])[0]


def _error_file(name: str) -> Path:
    return ENVIRONMENTS / f"{name}.error"


def main() -> None:
    """Install what the command line names."""
    for name in sys.argv[1:] or names():
        print(f"{name}: ", end="", flush=True)
        print("installed" if install(name) else problem_of(name), flush=True)


if __name__ == "__main__":
    main()
