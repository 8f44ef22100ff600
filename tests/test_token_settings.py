"""The token comes from the environment or a file. Some values are refused."""

from pathlib import Path

import pytest

from executor.errors import ConfigurationError
from executor.parameters import TOKEN_VARIABLE
from executor.wire.token import read_token

TOKEN = "tr0ub4dor-and-3"


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a token, and none in the environment."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def test_without_a_token_none_is_asked_for(token_file):
    assert read_token(None) is None


def test_the_token_comes_from_the_file_without_the_end_of_its_line(token_file):
    assert read_token(str(token_file)) == TOKEN


def test_the_token_comes_from_the_environment(token_file, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(None) == TOKEN


def test_both_may_name_the_same_token(token_file, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(str(token_file)) == TOKEN


def test_two_different_tokens_are_refused(token_file, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "another")
    with pytest.raises(ConfigurationError, match="different tokens"):
        read_token(str(token_file))


@pytest.mark.parametrize("token", ["", " \n", "two words", "mañana"])
def test_a_token_that_no_client_could_send_is_refused(token_file, monkeypatch, token):
    token_file.write_text(token)
    with pytest.raises(ConfigurationError, match="token_file must be printable ASCII"):
        read_token(str(token_file))
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(ConfigurationError, match=TOKEN_VARIABLE):
        read_token(None)


def test_a_file_that_cannot_be_read_is_refused(token_file, tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        read_token(str(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read_token(str(tmp_path))
