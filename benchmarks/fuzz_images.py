"""Fuzz what reads pictures, guided by coverage: uris, `data:` uris, image files, arrays and documents.

    .venv/bin/python -m pip install atheris==3.0.0   # Linux, Python 3.11 to 3.13
    .venv/bin/python -m benchmarks.fuzz_images [--minutes 60] [--only image] [--seeds FOLDER] [--quick]

Each target gets an equal share of the time, in a process of its own. An input counts against us if it raises anything
but `BadDocument` with a short message, gives anything but H×W×3 uint8, takes longer than 5 s, or takes the process
above 2 GB. libFuzzer writes such an input to the folder of seeds, under `found/`, and the program names it and ends
with exit code 1.

Inputs that reach new code are kept in the folder of seeds, a folder for each target, without those that add nothing
(`-merge=1` at the end). With `--keep` the small ones among them go into `benchmarks/fuzz_seeds.zip`, from which every
run begins and which a test tries again. The last line is the number of inputs that count against us, which has to be 0.
"""

import argparse
import importlib.util
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.common import print_headline

LIMITS = {"timeout": 5, "rss_limit_mb": 2048}
MOST_BYTES = 1 << 16
MOST_RUNS = 500_000  # inputs of a process: atheris keeps up to 1 KB of each, without its instrumentation nothing grows
KEPT = Path(__file__).with_name("fuzz_seeds.zip")
MOST_KEPT_BYTES = 2048  # of a seed
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def targets() -> dict[str, Callable[[bytes], None]]:
    """Return what is fuzzed, each a function of bytes that raises if something is wrong."""
    import numpy as np

    from executor.errors import BadDocument
    from executor.images.arrays import image_from_array
    from executor.images.data_uris import percent_decoded, without_base64
    from executor.images.decoding import decode_image
    from executor.images.orientation import orientation
    from executor.images.policy import ImagePolicy
    from executor.images.reading import image_of
    from executor.images.uris import check_uri, read_uri

    root = tempfile.mkdtemp(prefix="finetuner-fuzz-")
    policy = ImagePolicy(allowed_roots=(root,), allow_remote_uris=False, max_image_pixels=1_000_000)

    def check(image: np.ndarray) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise AssertionError(f"an image of shape {image.shape} and type {image.dtype}")

    def image(data: bytes) -> None:
        if not data:
            return
        sides = (None, None, 1, 16, 100)
        check(decode_image(data[1:], policy, min_size=sides[data[0] % len(sides)]))

    def metadata(data: bytes) -> None:
        if orientation(data[: len(data) // 2], data[len(data) // 2 :]) not in range(1, 9):
            raise AssertionError("an orientation that there is not")

    def uri(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        check_uri(text, policy)
        read_uri(text, policy)

    def data_uri(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        percent_decoded(data, policy)
        read_uri(f"data:{text}", policy)

    def array(data: bytes) -> None:
        types = ("u1", "i8", "f4", "f8", "f2", "?", "u2", "c8")
        if len(data) < 5:
            return
        shape = [side % 9 for side in data[1 : 1 + data[0] % 5]]
        values = np.frombuffer(data[5:].ljust(8 * 9**4, b"\0"), types[data[0] // 5 % len(types)])
        check(image_from_array(values[: int(np.prod(shape))].reshape(shape)))

    def document(data: bytes) -> None:
        if not data:
            return
        buffer, text = data[1:], data[1:].decode("utf-8", "surrogateescape")
        without_base64(buffer, policy)
        fields = {"uri": None, "buffer": None, "blob": None}
        fields |= {"uri": text} if data[0] % 2 else {"buffer": buffer}
        check(image_of(SimpleNamespace(**fields), policy, min_size=data[0] // 2 or None))

    def refusing(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def one_input(data: bytes) -> None:
            try:
                target(data)
            except BadDocument as refusal:
                if len(str(refusal).encode()) > 1000:  # also raises if it cannot be sent as UTF-8
                    raise AssertionError("a refusal of more than a few lines") from refusal

        return one_input

    found = (image, metadata, uri, data_uri, array, document)
    return {target.__name__: refusing(target) for target in found}


def seeds(target: str) -> Iterator[bytes]:
    """Yield a few small inputs to begin with."""
    from PIL import Image

    picture = Image.new("RGB", (12, 9), (200, 30, 30))
    exif = Image.Exif()
    exif[0x112] = 6
    if target == "image":
        animated = {"save_all": True, "append_images": [picture.rotate(90)]}
        forms = [(form, options) for form in FORMATS for options in ({}, {"exif": exif.tobytes()})]
        forms += [(form, animated) for form in ("WEBP", "GIF", "PNG", "TIFF")]
        forms += [("JPEG", {"progressive": True}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"big_tiff": True})]
        for form, options in forms:
            stored = io.BytesIO()
            picture.save(stored, form, **options)
            yield b"\0" + stored.getvalue()
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    yield from {
        "metadata": (
            exif.tobytes() + b'<x tiff:Orientation="6"/>',
            b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x112, 3, 1, 6, 0),
        ),
        "uri": (b"a.png", b"file:///tmp/a.png", b"http://host/a", b"data:,a", b"../../etc/passwd"),
        "data_uri": (b"image/png;base64,aGVsbG8/fg==", b",%41%zz", b";base64,aGVs%0abG8%2F"),
        "array": (bytes(range(256)), b"\x03\x04\x04\x03" + bytes(100)),
        "document": (b"\0" + stored.getvalue(), b"\1data:image/png;base64,aGVsbG8="),
    }.get(target, ())


def kept_seeds(target: str) -> Iterator[bytes]:
    """Yield the seeds that earlier runs have left."""
    if KEPT.exists():
        with zipfile.ZipFile(KEPT) as kept:
            yield from (kept.read(name) for name in kept.namelist() if name.startswith(f"{target}/"))


def keep(folder: Path) -> None:
    """Write the small seeds of all targets to one file, the same for the same seeds."""
    with zipfile.ZipFile(KEPT, "w", zipfile.ZIP_DEFLATED) as kept:
        for target in targets():
            small = sorted(
                {file.read_bytes() for file in (folder / target).glob("*")}, key=lambda seed: (len(seed), seed)
            )
            for number, seed in enumerate(small):
                if len(seed) <= MOST_KEPT_BYTES:
                    kept.writestr(zipfile.ZipInfo(f"{target}/{number}"), seed, zipfile.ZIP_DEFLATED)


def fuzz(target: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, by libFuzzer's arguments."""
    import atheris

    with atheris.instrument_imports(include=["executor", "PIL"]):
        chosen = targets()[target]
    atheris.Setup([sys.argv[0], *arguments], chosen)
    atheris.Fuzz()


def run(target: str, folder: Path, seconds: int) -> dict[str, Any]:
    """Fuzz a target in another process, make its seeds small, and return what was seen."""
    kept, found = folder / target, folder / "found" / target
    for each in (kept, found):
        each.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate((*seeds(target), *kept_seeds(target))):
        (kept / f"first-{number}").write_bytes(seed)
    limits = [f"-{name}={value}" for name, value in LIMITS.items()]
    command = [sys.executable, "-m", "benchmarks.fuzz_images", "--target", target, f"-max_len={MOST_BYTES}", *limits]
    fuzzing = [*command, f"-runs={MOST_RUNS}", f"-artifact_prefix={found}/", "-print_final_stats=1", str(kept)]
    executed, coverage, end = 0, 0, time.monotonic() + seconds
    while True:
        left = max(1, round(end - time.monotonic()))
        done = subprocess.run([*fuzzing, f"-max_total_time={left}"], capture_output=True, text=True, errors="replace")
        executed += sum(map(int, re.findall(r"number_of_executed_units: (\d+)", done.stderr)))
        coverage = max(coverage, *map(int, re.findall(r"cov: (\d+)", done.stderr)), 0)
        if done.returncode or time.monotonic() >= end - 1:
            break
    with tempfile.TemporaryDirectory(dir=folder) as smaller:
        merged = subprocess.run([*command, "-merge=1", smaller, str(kept)], capture_output=True)
        if merged.returncode == 0 and any(Path(smaller).iterdir()):
            for file in kept.iterdir():
                file.unlink()
            for file in Path(smaller).iterdir():
                file.rename(kept / file.name)
    return {
        "target": target,
        "inputs": executed,
        "coverage": coverage,
        "seeds": len(list(kept.iterdir())),
        "against us": sorted(map(str, found.iterdir())),
        "exit code": done.returncode,
        "end": done.stderr[-2000:] if done.returncode else "",
    }


def main() -> int:
    """Fuzz and print."""
    if sys.argv[1:2] == ["--target"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--seeds", type=Path, default=Path(tempfile.gettempdir()) / "finetuner-fuzz-seeds")
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--tiny", action="store_true", help="some seconds, to see that it runs")
    parser.add_argument("--keep", action="store_true", help="keep the small seeds for further runs and for the test")
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.exit(2, "It needs atheris: .venv/bin/python -m pip install atheris==3.0.0\n")
    chosen = [arguments.only] if arguments.only else list(targets())
    minutes = 0.1 if arguments.tiny else 0.5 if arguments.quick else arguments.minutes
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    against, failed = 0, 0
    for target in chosen:
        seen = run(target, arguments.seeds, max(1, int(60 * minutes / len(chosen))))
        end = seen.pop("end")
        print(json.dumps(seen), flush=True)
        if end:
            print(end, flush=True)
        against += len(seen["against us"])
        failed += bool(end)
    if arguments.keep:
        keep(arguments.seeds)
    print_headline("fuzz_inputs_against_us", float(max(against, failed)))
    return 1 if against or failed else 0


if __name__ == "__main__":
    sys.exit(main())
