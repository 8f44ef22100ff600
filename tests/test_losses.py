"""Losses by name: each one trains, on the pairs that the kind of data allows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from executor.errors import InvalidParameter
from executor.parameters import LOSS_NAMES
from executor.training.losses import (
    DEFAULT_LOSS,
    LOSSES,
    PROXY_LOSSES,
    build_loss,
    loss_arguments,
    session_pairs,
    session_triplets,
)

torch.set_num_threads(1)  # the tensors are tiny
EVERY_LOSS = [(kind, name) for kind, names in LOSSES.items() for name in (*names, "auto")]


def built(name: str, kind: str, **options: float) -> nn.Module:
    torch.manual_seed(0)
    return build_loss(name, kind, num_classes=4, embedding_size=8, options=options)


def batch(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of four groups that overlap, (32, 6), and their labels."""
    random = np.random.default_rng(0)
    groups = np.arange(32) % 4
    points = random.normal(size=(4, 6))[groups] + 0.7 * random.normal(size=(32, 6))
    if kind == "session":  # session g: a root and its matches, of which those of the group fit
        labels = np.asarray([(number // 4, (0, 1, -1, -1)[number % 4]) for number in range(32)])
        centres = np.asarray([number // 4 if number % 4 < 2 else 8 + number for number in range(32)])
        points = random.normal(size=(40, 6))[centres] + 0.7 * random.normal(size=(32, 6))
        return torch.tensor(points).float(), torch.tensor(labels)
    if kind == "unlabeled":  # two views of each
        points = np.concatenate([points[:16], points[:16] + 0.5 * random.normal(size=(16, 6))])
        return torch.tensor(points).float(), torch.arange(16).repeat(2)
    return torch.tensor(points).float(), torch.tensor(groups)


def trained(loss: nn.Module, kind: str, steps: int = 25) -> tuple[float, float]:
    """Return the loss before and after training a small network on one batch."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 8))
    points, labels = batch(kind)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=1e-2)
    values = []
    for _ in range(steps):
        value = loss(nn.functional.normalize(model(points)), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values[0], values[-1]


@pytest.mark.parametrize(("kind", "name"), EVERY_LOSS)
def test_every_loss_trains(kind, name):
    before, after = trained(built(name, kind), kind)
    assert after < 0.9 * before


@pytest.mark.parametrize("name", sorted(PROXY_LOSSES))
def test_the_proxies_are_trained_too(name):
    loss = built(name, "class")
    (proxies,) = loss.parameters()
    before = proxies.detach().clone()
    trained(loss, "class", steps=3)
    assert proxies.numel() == 4 * 8
    assert (proxies.detach() != before).all()


def test_the_names_that_parameters_accept_are_those_of_the_losses():
    assert {kind: set(names) for kind, names in LOSS_NAMES.items()} == {
        kind: {"auto", *names} for kind, names in LOSSES.items()
    }
    assert set(DEFAULT_LOSS) == set(LOSSES)


@pytest.mark.parametrize(
    ("kind", "name"), [("class", "softmax"), ("session", "proxy_anchor"), ("unlabeled", "arcface")]
)
def test_a_loss_that_a_kind_does_not_have_is_refused_with_those_it_has(kind, name):
    with pytest.raises(InvalidParameter, match=rf"no loss '{name}' for {kind} data; there are: auto, .*triplet"):
        built(name, kind)


@pytest.mark.parametrize(
    ("kind", "name", "argument"),
    [("class", "proxy_anchor", "alpha"), ("class", "triplet", "margin"), ("unlabeled", "ntxent", "temperature")],
)
def test_an_argument_of_a_loss_has_its_effect(kind, name, argument):
    points, labels = batch(kind)
    embeddings = nn.functional.normalize(torch.cat([points, points], dim=1)[:, :8])
    values = [built(name, kind, **{argument: value})(embeddings, labels).item() for value in (0.3, 0.9)]
    assert values[0] != pytest.approx(values[1])


def test_an_unknown_argument_of_a_loss_is_refused_with_those_it_has():
    with pytest.raises(InvalidParameter, match=r"'triplet' has no argument 'marign'; it has: margin"):
        built("triplet", "class", marign=0.1)


@pytest.mark.parametrize("argument", ["num_classes", "embedding_size", "distance", "reducer"])
def test_what_is_known_or_is_code_is_not_an_argument_of_a_caller(argument):
    with pytest.raises(InvalidParameter, match="no argument"):
        built("proxy_anchor", "class", **{argument: 3})


def test_an_argument_that_is_no_number_is_refused():
    with pytest.raises(InvalidParameter, match="'margin' of the loss 'triplet' must be a number, not 'wide'"):
        built("triplet", "class", margin="wide")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in EVERY_LOSS if name != "auto"])
def test_every_argument_that_is_offered_can_be_given(kind, name):
    loss = LOSSES[kind][name]
    for argument in loss_arguments(loss):
        built(name, kind, **{argument: True if argument in ("swap", "smooth_loss") else 0.5})


# --- sessions -----------------------------------------------------------------------------------------------------


@st.composite
def session_labels(draw) -> torch.Tensor:
    labels = [
        (session, kind)
        for session, kinds in enumerate(draw(st.lists(st.lists(st.sampled_from([1, -1]), max_size=4), max_size=5)))
        for kind in (0, *kinds)
    ]
    return torch.tensor(draw(st.permutations(labels)), dtype=torch.int64).reshape(-1, 2)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(labels=session_labels())
def test_pairs_and_triplets_are_those_of_the_sessions_and_no_others(labels):
    rows = labels.tolist()
    fits = [(a, p) for a in range(len(rows)) for p in range(len(rows)) if a != p and rows[a][0] == rows[p][0]]
    positive = {(a, p) for a, p in fits if rows[a][1] >= 0 and rows[p][1] >= 0}
    negative = {(a, n) for a, n in fits if rows[a][1] >= 0 and rows[n][1] == -1}
    anchors, positives, others, negatives = (index.tolist() for index in session_pairs(labels))
    assert sorted(zip(anchors, positives, strict=True)) == sorted(positive)
    assert sorted(zip(others, negatives, strict=True)) == sorted(negative)
    triplets = sorted(zip(*(index.tolist() for index in session_triplets(labels)), strict=True))
    assert triplets == sorted((a, p, n) for a, p in positive for b, n in negative if a == b)


@pytest.mark.parametrize("name", ["triplet", "contrastive"])
def test_a_session_loss_does_not_depend_on_how_sessions_lie_to_one_another(name):
    points, labels = batch("session")
    embeddings = nn.functional.normalize(torch.cat([points, points], dim=1)[:, :8])
    loss = built(name, "session")
    together = loss(embeddings[:8], labels[:8])
    turned = embeddings[:8].clone()
    turned[4:] = turned[4:].flip(1)  # within a session all similarities stay
    assert loss(turned, labels[:8]).item() == pytest.approx(together.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["triplet", "contrastive"])
def test_a_batch_of_sessions_without_any_negative_has_a_loss_that_can_be_trained(name):
    embeddings = nn.functional.normalize(torch.randn(4, 8)).requires_grad_()
    value = built(name, "session")(embeddings, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize(("kind", "name"), EVERY_LOSS)
def test_a_batch_in_which_all_embeddings_are_equal_has_finite_gradients(kind, name):
    embeddings = torch.ones(32, 8, requires_grad=True)
    value = built(name, kind)(nn.functional.normalize(embeddings), batch(kind)[1])
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(embeddings.grad).all()
