"""Which items are in which batch: properties that hold with any data."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.errors import NotTrainable
from executor.loading.samplers import ClassSampler, InstanceSampler, SessionSampler

quick = settings(deadline=None, max_examples=40, derandomize=True)


@st.composite
def class_labels(draw) -> np.ndarray:
    sizes = draw(st.lists(st.integers(1, 12), min_size=2, max_size=12))
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)  # their numbers need not be consecutive
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permutation(labels)


@st.composite
def sessions(draw) -> np.ndarray:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=15))
    return np.repeat(np.arange(len(sizes)), sizes)


asked = {
    "batch_size": st.integers(2, 40),
    "num_items_per_class": st.integers(1, 9),
    "seed": st.integers(0, 2**32 - 1),
    "epoch": st.integers(0, 1000),
}


# --- class --------------------------------------------------------------------------------------------------------


@quick
@given(labels=class_labels(), **asked)
def test_every_labelled_document_is_in_every_epoch(labels, batch_size, num_items_per_class, seed, epoch):
    sampler = ClassSampler(labels, batch_size=batch_size, num_items_per_class=num_items_per_class, seed=seed)
    assert set(np.concatenate(sampler.batches(epoch)).tolist()) == set(range(len(labels)))


@quick
@given(labels=class_labels(), **asked)
def test_a_class_batch_has_at_least_two_labels(labels, batch_size, num_items_per_class, seed, epoch):
    sampler = ClassSampler(labels, batch_size=batch_size, num_items_per_class=num_items_per_class, seed=seed)
    batches = sampler.batches(epoch)
    assert batches
    assert all(len(np.unique(labels[batch])) >= 2 for batch in batches)


@quick
@given(labels=class_labels(), **asked)
def test_a_class_batch_is_about_as_large_as_asked(labels, batch_size, num_items_per_class, seed, epoch):
    sampler = ClassSampler(labels, batch_size=batch_size, num_items_per_class=num_items_per_class, seed=seed)
    batches = sampler.batches(epoch)
    for batch in batches:  # more only where a group of another label is lent
        assert len(batch) <= batch_size or len(np.unique(labels[batch[: -sampler.items]])) == 1
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size + sampler.items
    assert min(sizes) > sampler.items
    assert max(sizes) - min(sizes) <= 2 * sampler.items  # the work is even: no small rest


@quick
@given(labels=class_labels(), count=st.integers(2, 40), whole=sessions(), **asked)
def test_no_batch_is_larger_than_the_sampler_says(labels, count, whole, batch_size, num_items_per_class, seed, epoch):
    for sampler in (
        ClassSampler(labels, batch_size=batch_size, num_items_per_class=num_items_per_class, seed=seed),
        InstanceSampler(count, batch_size=batch_size, seed=seed),
        SessionSampler(whole, batch_size=batch_size, seed=seed),
    ):
        assert max(len(batch) for batch in sampler.batches(epoch)) <= sampler.largest()


@quick
@given(labels=class_labels(), **asked)
def test_a_batch_is_of_groups_of_one_label_that_repeat_a_document_only_where_there_are_too_few(
    labels, batch_size, num_items_per_class, seed, epoch
):
    sampler = ClassSampler(labels, batch_size=batch_size, num_items_per_class=num_items_per_class, seed=seed)
    for batch in sampler.batches(epoch):
        for start in range(0, len(batch), sampler.items):
            group = batch[start : start + sampler.items]
            assert len(np.unique(labels[group])) == 1
            assert len(np.unique(group)) == min(sampler.items, (labels == labels[group[0]]).sum())


@quick
@given(labels=class_labels(), **asked)
def test_class_batches_are_a_pure_function_of_seed_and_epoch(labels, batch_size, num_items_per_class, seed, epoch):
    def sampler() -> ClassSampler:
        return ClassSampler(labels, batch_size=batch_size, num_items_per_class=num_items_per_class, seed=seed)

    used = sampler()
    used.batches(epoch + 1)
    np.random.seed(epoch)
    for first, second in zip(used.batches(epoch), sampler().batches(epoch), strict=True):
        np.testing.assert_array_equal(first, second)


@quick
@given(labels=class_labels(), **asked)
def test_class_batches_are_of_the_items_given(labels, batch_size, num_items_per_class, seed, epoch):
    def batches(**indices: np.ndarray) -> list[np.ndarray]:
        sampler = ClassSampler(
            labels, batch_size=batch_size, num_items_per_class=num_items_per_class, seed=seed, **indices
        )
        return sampler.batches(epoch)

    items = 100 + 7 * np.arange(len(labels))
    for chosen, plain in zip(batches(indices=items), batches(), strict=True):
        np.testing.assert_array_equal(chosen, items[plain])


@quick
@given(labels=class_labels(), epochs=st.integers(1, 5), batch_size=st.integers(2, 20))
def test_the_steps_of_class_epochs_are_counted_right(labels, epochs, batch_size):
    sampler = ClassSampler(labels, batch_size=batch_size, num_items_per_class=3)
    assert sampler.steps(epochs) == sum(len(sampler.batches(epoch)) for epoch in range(epochs))


def test_a_batch_has_different_labels_as_long_as_there_are_any():
    labels = np.repeat(np.arange(16), 8)
    sampler = ClassSampler(labels, batch_size=32, num_items_per_class=4)
    for batch in sampler.batches(0):
        assert np.bincount(labels[batch]).max() == 4
        assert len(np.unique(labels[batch])) == 8
    assert sampler.notes == []


def test_a_label_is_met_by_other_labels_in_other_epochs():
    labels = np.repeat(np.arange(20), 4)
    sampler = ClassSampler(labels, batch_size=8, num_items_per_class=4)
    partners = [
        {int(label) for batch in sampler.batches(epoch) if 0 in labels[batch] for label in labels[batch]}
        for epoch in range(10)
    ]
    assert len(set.union(*partners)) > 5


@pytest.mark.parametrize(
    ("sizes", "options", "note"),
    [
        ([8, 8], {"batch_size": 6, "num_items_per_class": 4}, "num_items_per_class is 3 instead of 4"),
        ([3, 3], {"batch_size": 64, "num_items_per_class": 4}, "num_items_per_class is 3 instead of 4"),
        ([8, 2, 1], {"batch_size": 8, "num_items_per_class": 4}, "2 labels have fewer than 4 documents"),
        (
            [8, 8, 8],
            {"batch_size": 32, "num_items_per_class": 4},
            "A batch wants 8 labels and there are 3; it gets several",
        ),
    ],
)
def test_what_a_class_sampler_adapts_to_it_says_once(sizes, options, note):
    sampler = ClassSampler(np.repeat(np.arange(len(sizes)), sizes), **options)
    sampler.batches(0)
    sampler.batches(1)
    assert sum(note in said for said in sampler.notes) == 1


def test_a_single_label_is_refused():
    with pytest.raises(NotTrainable, match="at least 2"):
        ClassSampler(np.zeros(10, np.int64), batch_size=4, num_items_per_class=2)


def test_a_hundred_thousand_documents_of_a_thousand_labels_are_all_dealt_out():
    labels = np.random.default_rng(0).integers(0, 1000, 100_000)
    batches = ClassSampler(labels, batch_size=64, num_items_per_class=4).batches(0)
    assert len(np.unique(np.concatenate(batches))) == 100_000


# --- session ------------------------------------------------------------------------------------------------------


@quick
@given(numbers=sessions(), batch_size=asked["batch_size"], seed=asked["seed"], epoch=asked["epoch"])
def test_a_session_is_in_an_epoch_once_and_whole(numbers, batch_size, seed, epoch):
    batches = SessionSampler(numbers, batch_size=batch_size, seed=seed).batches(epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(numbers)))
    homes = [set(numbers[batch].tolist()) for batch in batches]
    assert sum(map(len, homes)) == len(set.union(*homes))


@quick
@given(numbers=sessions(), batch_size=asked["batch_size"], seed=asked["seed"], epoch=asked["epoch"])
def test_a_session_batch_is_no_larger_than_asked_unless_one_session_is(numbers, batch_size, seed, epoch):
    batches = SessionSampler(numbers, batch_size=batch_size, seed=seed).batches(epoch)
    for batch in batches:
        assert len(batch) > 0
        assert len(batch) <= batch_size or len(np.unique(numbers[batch])) == 1
    for batch, following in pairwise(batches):  # and no smaller than it has to be
        assert len(batch) + (numbers[following] == numbers[following[0]]).sum() > batch_size


@quick
@given(numbers=sessions(), seed=asked["seed"], epoch=asked["epoch"])
def test_session_batches_are_a_pure_function_of_seed_and_epoch(numbers, seed, epoch):
    used = SessionSampler(numbers, batch_size=8, seed=seed)
    used.batches(epoch + 1)
    fresh = SessionSampler(numbers, batch_size=8, seed=seed)
    for first, second in zip(used.batches(epoch), fresh.batches(epoch), strict=True):
        np.testing.assert_array_equal(first, second)


@quick
@given(numbers=sessions(), epochs=st.integers(1, 5), batch_size=st.integers(2, 12))
def test_the_steps_of_session_epochs_are_counted_right(numbers, epochs, batch_size):
    sampler = SessionSampler(numbers, batch_size=batch_size)
    assert sampler.steps(epochs) == sum(len(sampler.batches(epoch)) for epoch in range(epochs))


def test_sessions_of_chosen_items_are_found_by_their_numbers():
    batches = SessionSampler(
        np.asarray([4, 4, 9, 9, 9]), batch_size=3, indices=np.asarray([10, 11, 30, 31, 32])
    ).batches(0)
    assert sorted(sorted(batch.tolist()) for batch in batches) == [[10, 11], [30, 31, 32]]


def test_the_documents_of_a_session_keep_their_order():
    numbers = np.arange(70) % 7
    for batch in SessionSampler(numbers, batch_size=20).batches(0):
        for session in np.unique(numbers[batch]):
            own = batch[numbers[batch] == session]
            assert own.tolist() == np.flatnonzero(numbers == session).tolist()


def test_sessions_larger_than_a_batch_are_said_once():
    sampler = SessionSampler(np.repeat([0, 1, 2, 3], [9, 3, 8, 4]), batch_size=4)
    sampler.batches(0)
    assert len(sampler.notes) == 1
    assert "2 sessions have more than batch_size=4 documents" in sampler.notes[0]


# --- unlabeled ----------------------------------------------------------------------------------------------------


@quick
@given(count=st.integers(2, 200), batch_size=asked["batch_size"], seed=asked["seed"], epoch=asked["epoch"])
def test_every_unlabeled_document_is_in_an_epoch_once_in_batches_of_two_or_more(count, batch_size, seed, epoch):
    batches = InstanceSampler(count, batch_size=batch_size, seed=seed).batches(epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert min(sizes) >= 2
    assert max(sizes) <= batch_size + 1
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_smallest_batch_without_labels_is_of_two_documents(batch_size):
    assert min(len(batch) for batch in InstanceSampler(7, batch_size=batch_size).batches(0)) >= 2


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(8, 2, [2, 2, 2, 2]), (7, 2, [3, 2, 2]), (8, 8, [8]), (9, 8, [5, 4]), (5, 8, [5])],
)
def test_unlabeled_documents_are_in_as_few_and_as_equal_batches_as_can_be(count, batch_size, sizes):
    assert [len(batch) for batch in InstanceSampler(count, batch_size=batch_size).batches(0)] == sizes


def test_one_unlabeled_document_is_refused():
    with pytest.raises(NotTrainable, match="at least 2"):
        InstanceSampler(1, batch_size=4)


# --- all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: ClassSampler(np.arange(60) % 5, batch_size=12, num_items_per_class=3, seed=seed),
        lambda seed: SessionSampler(np.arange(60) // 4, batch_size=12, seed=seed),
        lambda seed: InstanceSampler(60, batch_size=12, seed=seed),
    ],
    ids=["class", "session", "unlabeled"],
)
def test_every_epoch_and_every_seed_has_an_order_of_its_own(make):
    orders = [np.concatenate(make(seed).batches(epoch)).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6
