"""Copies of images are found by their content. Pictures that are only alike, or show nothing, are no copies."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from benchmarks.planted import KINDS, photograph
from benchmarks.shapes import classes, make
from executor.evaluation.copies import find_copies, groups_of_copies
from executor.evaluation.fingerprints import THUMBNAIL, Fingerprint, fingerprint, near_duplicates, share_nearly_seen
from executor.models.preprocessing import Preprocessing

PHOTOGRAPHS = [photograph(number) for number in range(24)]


def squares(images: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    return [Preprocessing(size=size).resize(image) for image in images]


def copies_among(images: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    return find_copies([fingerprint(image) for image in images], images.__getitem__)


@pytest.mark.parametrize("size", [64, 160, None], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "beyond" not in kind])
def test_a_planted_copy_is_found_and_nothing_else(kind, size):
    random = np.random.default_rng(1)
    images = [*PHOTOGRAPHS, *(KINDS[kind](image, random) for image in PHOTOGRAPHS[:12])]
    found = copies_among(images if size is None else squares(images, size))
    planted = {(number, len(PHOTOGRAPHS) + number) for number in range(12)}
    assert set(found) <= planted
    assert len(found) >= 11


def moved(number: int, shift: int) -> np.ndarray:
    """A scene of which what is near moves by so many pixels before what is far, as for a camera that is carried on."""
    far, near = photograph(number), photograph(number + 1000)
    mask = cv2.GaussianBlur(photograph(number + 2000)[..., :1], (0, 0), 12) > 120
    near, mask = np.roll(near, shift, axis=1), np.roll(mask, shift, axis=1)
    return np.where(mask[..., None], near, far)


def test_pictures_of_one_moment_are_alike_but_no_copies():
    images = squares([moved(number, shift) for number in range(8) for shift in (0, 6)], 96)
    prints = [fingerprint(image) for image in images]
    assert copies_among(images) == []
    assert share_nearly_seen(prints, [0] * 16, np.arange(16) % 2 == 1) > 0.5


def test_a_picture_of_the_same_label_and_another_moment_is_not_nearly_the_same():
    prints = [fingerprint(image) for image in PHOTOGRAPHS]
    assert share_nearly_seen(prints, ["one"] * 24, np.arange(24) < 8) == 0


def test_a_copy_is_nearly_the_same_only_under_its_label():
    prints = [fingerprint(image) for image in [*PHOTOGRAPHS, PHOTOGRAPHS[0]]]
    held = np.arange(25) == 24
    assert share_nearly_seen(prints, ["a"] * 25, held) == 1
    assert share_nearly_seen(prints, [*["a"] * 24, "b"], held) == 0


def test_pictures_of_one_colour_are_copies_only_if_equal():
    flat = [np.full((64, 64, 3), level, np.uint8) for level in (10, 11, 10, 200, 250)]
    assert copies_among(flat) == [(0, 2)]


@pytest.mark.parametrize("size", [8, 32, 64])
def test_shades_and_noise_and_drawings_are_no_copies_of_one_another(size):
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    shades = [120 + 60 * (np.cos(a) * x + np.sin(a) * y) for a in random.uniform(0, 6.28, 40)]
    images = [np.repeat(shade.astype(np.uint8)[..., None], 3, axis=2) for shade in shades]
    images += list(random.integers(0, 256, (40, size, size, 3), dtype=np.uint8))
    if size >= 32:
        images += list(make(classes(8), 10, 0, size)[0])
    assert copies_among(images) == []


def test_another_object_in_the_same_place_is_no_copy():
    scenes = []
    for colour in ((200, 30, 40), (40, 60, 210)):
        image = PHOTOGRAPHS[0].copy()
        cv2.circle(image, (128, 96), 50, colour, -1)
        cv2.line(image, (100, 70 + colour[0] // 8), (150, 120), (255, 255, 255), 4)
        scenes.append(image)
    assert copies_among(squares(scenes, 96)) == []


def test_equal_content_that_is_no_image_is_a_copy_and_other_content_is_not():
    rows = [np.arange(5.0), np.arange(5.0), np.arange(6.0), np.arange(5.0, dtype=np.float32), np.zeros((2, 0))]
    assert copies_among(rows) == [(0, 1)]


def test_the_same_bytes_in_another_shape_are_not_equal():
    assert fingerprint(np.zeros((4, 8, 3), np.uint8)).digest != fingerprint(np.zeros((8, 4, 3), np.uint8)).digest


def test_images_are_asked_for_only_where_two_look_alike():
    asked = []
    images = squares([*PHOTOGRAPHS, PHOTOGRAPHS[3][:, ::-1]], 96)

    def image(number: int) -> np.ndarray:
        asked.append(number)
        return images[number]

    assert find_copies([fingerprint(each) for each in images], image) == [(3, 24)]
    assert sorted(asked) == [3, 24]


def test_a_group_is_joined_without_comparing_each_with_each():
    random = np.random.default_rng(0)
    images = squares([KINDS["JPEG"](PHOTOGRAPHS[0], random) for _ in range(20)] + PHOTOGRAPHS[1:], 96)
    pairs = copies_among(images)
    groups = groups_of_copies(pairs, len(images))
    assert len(pairs) < 20
    assert len(set(groups[:20])) == 1
    assert len(set(groups)) == len(PHOTOGRAPHS)


def test_groups_follow_the_pairs():
    assert groups_of_copies([(0, 2), (2, 4)], 5).tolist() == [0, 1, 0, 2, 0]
    assert groups_of_copies([], 3).tolist() == [0, 1, 2]


def test_no_images_have_no_copies():
    assert copies_among([]) == []
    assert share_nearly_seen([], [], np.zeros(0, bool)) == 0


def test_many_fingerprints_are_compared_with_few_others():
    count = 10_000
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 5, 5), dtype=np.uint8)
    grey = [cv2.resize(each, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_CUBIC) for each in coarse]
    prints = [Fingerprint(number.to_bytes(16, "big"), thumbnail) for number, thumbnail in enumerate(grey)]
    prints[-1] = Fingerprint(b"copy", grey[0][:, ::-1].copy())
    near = near_duplicates(prints)
    assert (near.first[0], near.second[0]) in {(0, count - 1), (count - 1, 0)}
    windows = 32  # 16, each mirrored too
    assert near.comparisons < windows * count * 6 * count**0.5
    assert near.comparisons < windows * count * count / 20
