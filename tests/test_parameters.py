"""What a caller may ask for and an operator may configure, and how wrong values are refused."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from executor.errors import BadRequest, ConfigurationError, InvalidParameter
from executor.models.model import SMALLEST_INPUT
from executor.parameters import (
    LOSS_NAMES,
    CancelParameters,
    EmbedParameters,
    EvaluateParameters,
    ExecutorOptions,
    FitParameters,
    PromoteParameters,
    StatusParameters,
    TrainingOptions,
    parse,
    parse_executor_options,
)
from sentences import assert_plain

PARAMETERS = (
    FitParameters,
    StatusParameters,
    EmbedParameters,
    CancelParameters,
    PromoteParameters,
    EvaluateParameters,
)


def fit(**values):
    return parse(FitParameters, values, where="/fit")


def refusal(model: type[BaseModel] = FitParameters, **values) -> str:
    with pytest.raises(InvalidParameter) as caught:
        parse(model, values, where="/here")
    return str(caught.value)


def test_the_defaults_are_those_of_the_documentation():
    options = fit()
    assert (options.run, options.split, options.total, options.start) == (None, "train", None, False)
    assert (options.kind, options.base, options.val_split, options.promote) == ("auto", "base", "auto", "if_better")


@pytest.mark.parametrize("model", PARAMETERS)
def test_an_unknown_parameter_is_refused_by_name_with_the_accepted_ones(model):
    message = refusal(model, **{"run": "a", "epocs": 3} if "run" in model.model_fields else {"epocs": 3})
    assert message.startswith("/here has no parameter 'epocs'; it accepts: ")
    assert all(name in message for name in model.model_fields)


def test_a_parameter_that_is_needed_is_named():
    assert "needs the parameter 'run'" in refusal(CancelParameters)


def test_a_refusal_is_the_callers_mistake():
    with pytest.raises(BadRequest) as caught:
        fit(epochs="many")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("epochs", 3.0, 3),
        ("seed", 0.0, 0),
        ("learning_rate", 1, 1.0),
        ("freeze", True, True),
        ("freeze", ["layer1", "layer2"], ("layer1", "layer2")),
        ("freeze", "layer1", ("layer1",)),
        ("total", 100.0, 100),
        ("run", "a-b_c.1", "a-b_c.1"),
    ],
)
def test_what_the_wire_made_of_a_value_is_undone(name, given, taken):
    value = getattr(fit(**{name: given}), name)
    assert value == taken
    assert type(value) is type(taken)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 3.5),
        ("epochs", "3"),
        ("epochs", True),
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", float("nan")),
        ("epochs", float("inf")),
        ("epochs", [3]),
        ("batch_size", 1),
        ("learning_rate", 0),
        ("learning_rate", "1e-3"),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("val_split", 1),
        ("val_split", -0.1),
        ("warmup", 1.0),
        ("seed", -1),
        ("seed", 2**32),
        ("kind", "classes"),
        ("split", "test"),
        ("total", 0),
        ("start", "yes"),
        ("start", 1.0),
        ("loss", "softmax"),
        ("loss_options", [1]),
        ("freeze", 1),
        ("promote", True),
        ("trials", 0),
        ("trials", 101),
        ("trials", 1.5),
        ("precision", "fp16"),
        ("run", ""),
        ("run", ".hidden"),
        ("run", "../elsewhere"),
        ("run", "a/b"),
        ("run", "a" * 65),
        ("run", "new\n"),
        ("run", 3),
        ("run", "base"),
        ("run", "promoted"),
    ],
)
def test_an_ill_typed_parameter_is_refused_by_name_and_value(name, value):
    message = refusal(**{name: value})
    assert repr(name) in message
    assert repr(value)[:50] in message
    assert "It accepts: " in message


def test_a_long_value_is_shortened_in_the_message():
    assert len(refusal(kind="x" * 10_000)) < 1000


def test_keys_that_jina_adds_are_dropped_and_null_means_not_given():
    assert fit(__results__={}, epochs=None) == fit()
    assert parse(FitParameters, None, where="/fit") == fit()


def test_null_for_an_unknown_parameter_is_still_refused():
    assert "'epocs'" in refusal(epocs=None)


@pytest.mark.parametrize("kind", sorted(LOSS_NAMES))
def test_every_loss_of_a_kind_is_accepted_for_it(kind):
    for loss in LOSS_NAMES[kind]:
        assert fit(kind=kind, loss=loss).loss == loss


def test_a_loss_of_another_kind_is_refused_with_those_that_fit():
    message = refusal(kind="session", loss="proxy_anchor")
    assert "'proxy_anchor' is not for session data; choose one of: auto, triplet, contrastive" in message


def test_only_the_training_options_that_were_set_are_kept_with_a_run():
    assert fit(run="a", start=True, epochs=3.0, kind="auto").training_options() == {"epochs": 3, "kind": "auto"}


def test_parameters_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        fit().epochs = 3


@pytest.mark.parametrize("model", [TrainingOptions, FitParameters, ExecutorOptions])
def test_every_parameter_says_what_it_is(model):
    assert [name for name, field in model.model_fields.items() if not field.description] == []


# --- the executor's options ---------------------------------------------------------------------------------------


def test_the_executor_has_defaults_for_everything():
    options = parse_executor_options({})
    assert (options.model, options.receive_timeout, options.allow_remote_uris) == ("default", 5.0, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modle", "default"),
        ("model", ""),
        ("input_size", SMALLEST_INPUT - 1),
        ("receive_timeout", 0),
        ("receive_timeout", "5"),
        ("allow_remote_uris", "no"),
        ("fit_defaults", {"epocs": 3}),
        ("fit_defaults", {"epochs": 0}),
        ("fit_defaults", {"run": "a"}),
        ("device", "quantum"),
        ("device", "cuda:"),
        ("preprocess_fn", "package.module"),
        ("preprocess_fn", "package.module:"),
        ("devices", ["cpu", "quantum"]),
        ("devices", ["cuda:0", "cpu"]),
        ("devices", ["cuda:1", "cuda:1"]),
        ("devices", []),
        ("trainer_nice", 20),
        ("max_image_bytes", 0),
        ("augment", 3),
        ("train_command", ""),
        ("train_command", "python -m executor train"),
        ("train_command", "{python} train --job {jobs} {job}"),
        ("train_command", "sh -c 'train {job}"),
        ("train_command", "train {job} > ${HOME}/log"),
        ("train_jobs", "/jobs"),
        ("cors_origins", "shop.example"),
        ("cors_origins", ["https://shop.example", "https://shop.example/page"]),
        ("cors_origins", "https://*.shop.example"),
        ("cors_origins", "null"),
        ("cors_origins", [3]),
    ],
)
def test_a_wrong_option_of_the_executor_is_a_configuration_error_that_names_it(name, value):
    with pytest.raises(ConfigurationError, match=name):
        parse_executor_options({name: value})


def test_that_no_origin_stands_for_all_is_said_by_name():
    with pytest.raises(ConfigurationError, match=r"'cors_origins' of the executor is .* but must name each site"):
        parse_executor_options({"cors_origins": ["*"]})


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://shop.example", "https://shop.example"),
        ("HTTPS://Shop.example:443/", "https://shop.example"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:443/", "http://localhost:443"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_an_origin_is_kept_as_browsers_send_it(given, sent):
    assert parse_executor_options({"cors_origins": [given]}).cors_origins == (sent,)


def test_the_executor_takes_every_input_size_that_a_model_takes():
    assert parse_executor_options({"input_size": SMALLEST_INPUT}).input_size == SMALLEST_INPUT


def test_the_allowed_roots_are_absolute_and_by_default_the_present_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ExecutorOptions().with_roots().allowed_roots == (str(tmp_path.resolve()),)
    assert ExecutorOptions(allowed_roots="images").with_roots().allowed_roots == (str((tmp_path / "images").resolve()),)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=st.sampled_from(PARAMETERS), data=st.data())
def test_any_json_value_of_any_parameter_is_accepted_or_refused_plainly(model, data):
    field = data.draw(st.sampled_from(list(model.model_fields)))
    try:
        parse(model, {field: data.draw(JSON)}, where="/here")
    except InvalidParameter as error:
        assert_plain(str(error), "/here", "must be" if "is" in str(error) else "needs")
