"""Which train documents are held out, and which of them stay together."""

import numpy as np
import pytest

from executor import ClassDataset, Document, DocumentArray, InstanceDataset, SessionDataset
from executor.documents import Match
from executor.errors import NotTrainable
from executor.evaluation.hold_out import Parts, automatic_share, document_numbers, split_documents


def labelled(*sizes: int) -> ClassDataset:
    """A class of each size; the items of a class are consecutive."""
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
    return ClassDataset(DocumentArray(Document(text="x", tags={"finetuner_label": label}) for label in labels))


def sessions(count: int, *, plain: int = 0) -> SessionDataset:
    """Sessions with a match of either label, and `plain` ones more, all of whose matches fit."""

    def match(label: int) -> Match:
        return Match(text="x", tags={"finetuner_label": label})

    labels = [(1, -1)] * count + [(1, 1)] * plain
    return SessionDataset(DocumentArray(Document(text="x", matches=[*map(match, both)]) for both in labels))


def parts_of(dataset, share="auto", **arguments) -> Parts:
    return split_documents(dataset, np.arange(len(dataset)), share, seed=0, **arguments)


def test_every_item_is_in_one_part():
    dataset = labelled(*[20] * 30)
    parts = parts_of(dataset)
    assert sorted(np.concatenate([parts.train, parts.proof, parts.choose])) == list(range(600))


@pytest.mark.parametrize(
    ("sizes", "share"),
    [([5] * 7, 0.0), ([10] * 4, 1 / 3), ([20] * 4, 0.25), ([20] * 6, 20 / 120), ([50] * 20, 0.15)],
    ids=["35: none", "40: a third at most", "80: 20 queries", "120: 20 queries", "1000: 15 %"],
)
def test_the_automatic_share_grows_where_it_would_be_fewer_than_20_queries(sizes, share):
    dataset = labelled(*sizes)
    assert automatic_share(dataset, np.arange(len(dataset))) == pytest.approx(share)


@pytest.mark.parametrize(
    ("ranked", "plain", "share"), [(200, 0, 0.15), (80, 120, 0.25), (20, 180, 1 / 3), (20, 10, 0.0)]
)
def test_of_sessions_those_are_queries_whose_matches_can_be_ranked(ranked, plain, share):
    dataset = sessions(ranked, plain=plain)
    assert automatic_share(dataset, np.arange(len(dataset))) == pytest.approx(share)


def test_sessions_that_cannot_be_ranked_are_trained_on_unless_they_belong_to_one_that_can():
    dataset = sessions(60, plain=240)
    parts = parts_of(dataset)
    numbers = document_numbers(dataset)
    assert len(np.unique(numbers[parts.proof])) == 20
    assert max(numbers[parts.proof]) < 60
    assert max(numbers[parts.choose]) < 60
    units = np.where(numbers < 299, numbers, 0)  # the last session is of the first one's customer
    together = parts_of(dataset, units=units)
    for part in (together.train, together.proof, together.choose):
        assert np.isin(numbers[part], [0, 299]).sum() in (0, 6)


def test_about_the_share_of_each_label_is_held_out():
    dataset = labelled(100, 40, 20)
    parts = parts_of(dataset, 0.2)
    assert np.bincount(dataset.labels[parts.proof]).tolist() == [20, 8, 4]


def test_a_label_keeps_two_documents_and_gives_two_or_none():
    dataset = labelled(*range(1, 12))
    parts = parts_of(dataset, 0.3)
    given, sizes = np.bincount(dataset.labels[parts.proof], minlength=11), np.arange(1, 12)
    assert set(given[:3]) == {0}
    assert given[3:].min() >= 2
    assert (sizes - given)[3:].min() >= 2


@pytest.mark.parametrize(("labels", "each"), [(100, 4), (100, 6), (1000, 6)])
def test_of_many_small_labels_some_give_two_so_that_all_give_their_share(labels, each):
    dataset = labelled(*[each] * labels)
    parts = parts_of(dataset)
    of = labels * each
    assert len(parts.proof) == pytest.approx(0.15 * of, abs=2)
    assert len(parts.choose) == pytest.approx(0.1 * (of - len(parts.proof)), abs=0.02 * of)
    assert len(parts_of(dataset, 0.1).proof) == pytest.approx(0.1 * of, abs=2)
    given = np.bincount(dataset.labels[parts.proof], minlength=labels)
    assert set(given) == {0, 2, each}  # some are held out whole


def test_never_more_than_2000_documents_choose_however_small_the_labels_are():
    assert len(parts_of(labelled(*[6] * 6000)).choose) <= 2000


def test_one_large_unit_does_not_make_the_part_much_larger_or_smaller_than_the_share():
    picture_clicked_on_often = sessions(400)
    numbers = document_numbers(picture_clicked_on_often)
    shoots = labelled(*[60] * 10)
    of_shoots = np.tile(np.repeat(np.arange(15), [30, 10, 5, 3, 2, *[1] * 10]), 10) + 100 * shoots.labels
    for seed in range(20):
        parts = split_documents(
            picture_clicked_on_often, np.arange(1200), "auto", seed=seed, units=np.where(numbers < 300, 0, numbers)
        )
        assert len(parts.proof) == pytest.approx(0.15 * 1200, abs=3)
        parts = split_documents(shoots, np.arange(600), "auto", seed=seed, units=of_shoots)
        assert 0.15 * 600 <= len(parts.proof) <= 0.2 * 600


def test_labels_that_can_only_give_a_large_unit_give_the_share_together():
    dataset = labelled(*[60] * 10)  # two shoots of each
    parts = parts_of(dataset, units=np.arange(600) // 30)
    assert len(parts.proof) == 90


def test_a_large_class_is_not_held_out_whole():
    dataset = labelled(2000, *[4] * 50)
    assert all(0 not in split_documents(dataset, np.arange(2200), "auto", seed=s).whole_classes for s in range(20))


def test_what_belongs_together_is_never_on_both_sides():
    dataset = labelled(*[40] * 10)
    units = np.random.default_rng(0).integers(0, 120, 400)  # across labels too
    parts = parts_of(dataset, 0.2, units=units)
    assert len(parts.proof)
    for one, other in [(parts.train, parts.proof), (parts.train, parts.choose), (parts.proof, parts.choose)]:
        assert not set(units[one]) & set(units[other])


def test_a_label_that_is_one_burst_is_only_trained_on():
    dataset = labelled(*[20] * 5)
    units = np.arange(100)
    units[:20] = 0
    parts = parts_of(dataset, 0.2, units=units)
    assert 0 not in dataset.labels[parts.proof]
    assert set(dataset.labels[parts.proof]) == {1, 2, 3, 4}


def test_of_many_classes_one_in_twenty_is_held_out_whole():
    dataset = labelled(*[10] * 60)
    parts = parts_of(dataset)
    assert len(parts.whole_classes) == 3
    learned = np.concatenate([parts.train, parts.choose])
    assert not set(parts.whole_classes) & set(dataset.labels[learned])
    assert set(parts.whole_classes) < set(dataset.labels[parts.proof])


def test_a_class_that_shares_a_group_with_another_is_not_held_out_whole():
    dataset = labelled(*[10] * 40)
    units = np.arange(400)
    units[9::10] = 1000  # one group in every class
    assert parts_of(dataset, units=units).whole_classes == ()


def test_few_classes_and_a_share_in_numbers_hold_out_none_whole():
    assert parts_of(labelled(*[30] * 39)).whole_classes == ()
    assert parts_of(labelled(*[30] * 60), 0.2).whole_classes == ()


def test_sessions_are_held_out_whole_and_counted_by_their_roots():
    dataset = sessions(60)
    parts = parts_of(dataset)
    assert len(parts.proof) == 3 * 20
    assert not set(dataset.labels[parts.proof, 0]) & set(dataset.labels[parts.train, 0])


def test_documents_without_labels_are_held_out_by_number_only():
    dataset = InstanceDataset(DocumentArray(Document(text="x") for _ in range(100)))
    assert len(parts_of(dataset).proof) == 0
    assert len(parts_of(dataset, 0.2).proof) == 20


def test_what_chooses_is_a_tenth_of_what_is_left_where_there_is_enough():
    dataset = labelled(*[30] * 20)
    parts = parts_of(dataset)
    assert len(parts.choose) == pytest.approx(0.1 * (600 - len(parts.proof)), abs=20)
    assert len(parts_of(labelled(*[11] * 15)).choose) == 0


def test_a_number_that_holds_out_nothing_is_refused():
    with pytest.raises(NotTrainable, match=r"val_split=0\.1 holds out none of the 8 documents"):
        parts_of(labelled(*[2] * 4), 0.1)
    assert len(parts_of(labelled(*[2] * 40), 0).proof) == 0


def test_the_same_seed_holds_out_the_same():
    dataset = labelled(*[20] * 10)
    assert parts_of(dataset).proof.tolist() == parts_of(dataset).proof.tolist()
    assert split_documents(dataset, np.arange(200), "auto", seed=1).proof.tolist() != parts_of(dataset).proof.tolist()


# --- after an earlier training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [labelled(*[40] * 5), sessions(200)], ids=["class", "session"])
def test_what_the_base_was_trained_on_proves_nothing_and_what_proved_it_does_first(dataset):
    numbers = document_numbers(dataset) % 40  # of each forty, 26 taught the base, 4 proved it, and 10 are new
    parts = parts_of(dataset, taught=numbers < 26, proved=(numbers >= 26) & (numbers < 30))
    proof = np.unique(document_numbers(dataset)[parts.proof]) % 40
    assert not (proof < 26).any()
    assert (proof < 30).sum() == 20
    assert 5 <= (proof >= 30).sum() <= 50 // 3


@pytest.mark.parametrize("dataset", [labelled(*[40] * 5), sessions(200)], ids=["class", "session"])
def test_what_the_served_version_was_trained_on_proves_nothing_where_there_is_enough_else(dataset):
    numbers = document_numbers(dataset) % 40
    proved = (numbers >= 26) & (numbers < 30)
    parts = parts_of(dataset, taught=numbers < 10, taught_served=(numbers >= 10) & (numbers < 26), proved=proved)
    proof = np.unique(document_numbers(dataset)[parts.proof]) % 40
    assert (proof >= 26).all()
    assert len(proof) >= 20


@pytest.mark.parametrize("share", ["auto", 0.2])
def test_what_the_served_version_was_trained_on_is_proof_where_there_is_too_little_else_but_not_what_taught_the_base(
    share,
):
    dataset = labelled(*[40] * 5)
    numbers = np.arange(200) % 40
    parts = parts_of(dataset, share, taught=numbers < 20, taught_served=numbers >= 21)  # five documents are new
    assert (numbers[parts.proof] >= 20).all()
    assert len(parts.proof) >= 20


def test_a_class_that_taught_a_version_is_not_held_out_whole_and_one_that_proved_it_is_again():
    dataset = labelled(*[10] * 60)
    first = parts_of(dataset)
    proved = np.isin(np.arange(600), first.proof)
    for seen in ({"taught": ~proved}, {"taught_served": ~proved}):
        again = parts_of(dataset, proved=proved, **seen)
        assert set(again.proof) == set(first.proof)
        assert again.whole_classes == first.whole_classes


def test_only_classes_that_are_new_are_held_out_whole_after_a_training_on_some_of_each():
    dataset = labelled(*[10] * 60)
    taught = (np.arange(600) % 10 >= 2) & (dataset.labels < 50)
    parts = parts_of(dataset, taught=taught, proved=~taught & (dataset.labels < 50))
    assert len(parts.whole_classes) == 3
    assert min(parts.whole_classes) >= 50
    assert not taught[parts.proof].any()


@pytest.mark.parametrize("each", [3, 5])
def test_no_document_is_held_out_that_finds_no_other_of_its_label(each):
    labels = np.arange(16 * each) % 16
    dataset = ClassDataset(DocumentArray(Document(text="x", tags={"finetuner_label": int(label)}) for label in labels))
    units = np.arange(len(labels)) // 2  # each has one document of two labels
    for seed in range(10):
        proof = split_documents(dataset, np.arange(len(labels)), "auto", seed=seed, units=units).proof
        _, counts = np.unique(dataset.labels[proof], return_counts=True)
        assert (counts > 1).all()
        assert (len(proof) > 0) == (each > 3)


@pytest.mark.parametrize("sizes", [[4] * 15, [6] * 10, [4] * 20])
def test_a_model_from_before_that_knows_one_document_leaves_about_as_many_to_prove_the_next(sizes):
    dataset = labelled(*sizes)
    alone = len(parts_of(dataset).proof)
    known = np.arange(len(dataset)) == 0
    found = parts_of(dataset, taught=known, proved=np.zeros_like(known)).proof
    assert len(found) >= min(20, alone) - 1  # two documents of each label


def test_new_documents_of_one_label_do_not_prove_what_those_of_ten_could():
    dataset = labelled(*[20] * 10, 150)
    parts = parts_of(dataset, taught_served=np.arange(350) < 200)
    assert len(set(dataset.labels[parts.proof])) == 11


def test_a_share_of_documents_that_were_all_trained_on_is_nothing_and_no_mistake_of_the_caller():
    dataset = labelled(*[20] * 5)
    assert len(parts_of(dataset, 0.2, taught=np.arange(100) < 99).proof) == 0
