"""An image search in one Flow whose model changes under traffic, in each of the four ways to treat its index.

    pip install qdrant-client matplotlib
    python -m examples.search [--photos FOLDER] [--output FOLDER] [--quick]

The Flow is the FinetunerExecutor and behind it a vector store (`store.py`: Qdrant's local mode). A gallery is embedded
by the bulk command and searched, a run is trained, and its status advises one of four ways. All four are carried out,
one after the other, each from the same start and while queries come: `nothing`, `map queries`, `map index` and
`embed anew` (docs/index-migration.md). In the end there is a table of what the queries found, and `recall.png`, the
recall over time. The exit code is 1 if a query failed or was answered across spaces.

The pictures are scikit-learn's digits, or photographs in class folders; a test folder beside `train` is the shop.
"""

import argparse
import sys
from pathlib import Path

from examples.demo import free_ports
from examples.search.changes import Shop
from examples.search.pictures import Pictures, digits, photographs
from examples.search.plotting import draw
from examples.search.serving import served
from examples.search.traffic import Traffic


def main() -> int:
    """Serve, train, change the index in four ways, and say what the queries found."""
    arguments = parse()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if arguments.photos:
        pictures = photographs(arguments.photos.resolve(), quick=arguments.quick)
    else:
        pictures = digits(output, quick=arguments.quick)
    (port,) = free_ports(1)
    with served(output, port, pictures):
        return search(Shop(output, port, pictures), pictures, output / "recall.png")


def search(shop: Shop, pictures: Pictures, plot: Path) -> int:
    """Do it all with the Flow. Return the exit code."""
    status = shop.open()
    print(f"The run advises {status.index_plan['advice']!r}: {status.verdict}\n")
    with Traffic(shop.port, pictures.queries, pictures.labels) as traffic:
        traffic.one_round("before")
        for way, change in shop.changes().items():
            change(traffic)
            traffic.one_round(way)
            shop.go_back(traffic)
    found = traffic.by_way()
    print(f"{'way':<12} {'queries':>8} {'recall@1':>9} {'failed':>7} {'across spaces':>14}")
    for way, answers in found.items():
        hits = sum(answer.hit for answer in answers) / len(answers)
        failed = sum(answer.failed is not None for answer in answers)
        print(f"{way:<12} {len(answers):>8} {hits:>9.3f} {failed:>7} {sum(a.across for a in answers):>14}")
    for reason in {answer.failed for answer in traffic.answers if answer.failed}:
        print(f"failed: {reason}")
    draw(plot, traffic)
    print(f"{len(traffic.answers)} queries in all; recall over time: {plot}")
    wrong = [answer for answer in traffic.answers if answer.failed or (answer.across and not answer.meant)]
    return 1 if wrong else 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="photographs, in a folder for each class, in place of digits")
    parser.add_argument("--output", type=Path, default=Path("search-demo"), help="a new folder for all that is written")
    parser.add_argument("--quick", action="store_true", help="fewer digits, or two epochs of photographs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
