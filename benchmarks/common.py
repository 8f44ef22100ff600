"""Shared by the benchmarks: options, test images, a description of the machine, and printing of figures."""

import argparse
import io
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

WIDTH, HEIGHT = 640, 480
JPEG_QUALITY = 85


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark; `description` is the module's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; the figures are rough")
    parser.add_argument("--tiny", action="store_true", help="seconds; only shows that the program works")
    return parser


def free_port() -> int:
    """Return a port that nothing was listening on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def print_machine(device: "torch.device | None" = None) -> None:
    """Print the properties of the machine that the figures depend on. Args: device: what computes, if not the CPU."""
    import torch

    capabilities = [name for name, has in torch.cpu.get_capabilities().items() if has is True]
    print(f"processor: {_processor()}, {os.cpu_count()} cores ({', '.join(capabilities)})")
    waiting = os.environ.get("GOMP_SPINCOUNT", "not set")
    print(f"python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads", end="")
    print(f", GOMP_SPINCOUNT {waiting}")
    if device is not None and device.type == "cuda":
        print(f"{device}: {torch.cuda.get_device_name(device)}")
    print(f"load average at the start: {os.getloadavg()[0]:.1f} (should be near 0)\n", flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def textured(label: int, number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return an image, (height, width, 3) uint8: shapes on stripes, with noise. The class sets colours and angle."""
    of_class = np.random.default_rng([label, 0])
    of_image = np.random.default_rng([label, number, 1])
    angle, period = of_class.uniform(0, np.pi), of_class.uniform(8, 40)
    colours = of_class.integers(40, 216, (2, 3))
    y, x = np.mgrid[:height, :width]
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + of_image.uniform(0, 2 * np.pi))
    image = (colours[0] + 40 * stripes[..., None]).clip(0, 255).astype(np.uint8)
    for _ in range(4):
        centre = int(of_image.integers(0, width)), int(of_image.integers(0, height))
        axes = tuple(int(axis) for axis in of_image.integers(height // 16 + 1, height // 4 + 2, 2))
        cv2.ellipse(image, centre, axes, of_image.uniform(0, 180), 0, 360, colours[1].tolist(), -1)
    noise = of_image.integers(0, 32, image.shape, dtype=np.uint8)
    return cv2.add(image, noise)


def jpeg(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """Return the image as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_jpegs(folder: Path, count: int, classes: int, **size: int) -> list[tuple[str, int]]:
    """Write `count` JPEG files with labels 0 … classes-1 in turn; return their (path, label)."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(number: int) -> tuple[str, int]:
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(jpeg(textured(number % classes, number, **size)))
        return str(path), number % classes

    with ThreadPoolExecutor(os.cpu_count()) as cores:
        return list(cores.map(write, range(count)))


def seconds_of(function: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def median(values: Iterable[float]) -> float:
    """Return the median; NaN if there are no values."""
    listed = list(values)
    return statistics.median(listed) if listed else float("nan")


def spread(values: Sequence[float]) -> str:
    """Return the range of repeated measurements, which shows how far to trust their median."""
    return f"{min(values):.4g}–{max(values):.4g}"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table, with four significant digits for floats."""
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row)} |")
    print(flush=True)


def print_headline(name: str, value: float) -> None:
    """Print the last line, `name: value`."""
    print(f"{name}: {value:.3f}", flush=True)
