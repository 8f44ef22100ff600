"""What fuzzing by coverage has found to reach new code is tried again; see `benchmarks/fuzz_images.py`."""

import pytest

from benchmarks.fuzz_images import kept_seeds, seeds, targets

TARGETS = targets()


@pytest.mark.filterwarnings(
    "ignore"
)  # Pillow warns of what is wrong with a file, and arrays of channels that come first
@pytest.mark.parametrize("target", TARGETS)
def test_every_kept_input_is_taken_or_refused_in_a_short_sentence(target: str) -> None:
    tried = [*seeds(target), *kept_seeds(target)]
    assert len(tried) > 10
    for data in tried:
        TARGETS[target](data)
