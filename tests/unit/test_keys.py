"""Keys: what is one, what a key file may say, and that no error quotes a secret."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from ranktap import keys
from ranktap_wire.keys import KEY_CHARACTERS, check_key, read_key_file

PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
VARIABLES = ("RANKTAP_KEY_FILE", "RANKTAP_SERVER_KEY", "RANKTAP_KEY")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@given(st.binary(min_size=32, max_size=32))
def test_every_32_bytes_are_a_key(key: bytes) -> None:
    text = z85.encode(key).decode()
    assert check_key(text, "key") == text


@given(st.text(min_size=KEY_CHARACTERS, max_size=KEY_CHARACTERS))
def test_what_is_taken_for_a_key_is_one(text: str) -> None:
    try:
        check_key(text, "key")
    except ValueError:
        return
    assert z85.encode(z85.decode(text.encode())).decode() == text


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "got none"),
        (7, "got none"),
        ("", "got 0 characters"),
        (SECRET[:-1], "got 39 characters"),
        (SECRET[:-1] + "~", "in Z85, got other characters"),
        ("#" * 40, "in Z85, got other characters"),  # digits of Z85, and more than 32 bytes
    ],
    ids=["none", "number", "empty", "short", "no digit", "too large"],
)
def test_what_is_no_key_is_named_and_not_quoted(given: object, what: str) -> None:
    with pytest.raises(ValueError, match=f"^place: expected a key.*{what}$") as error:
        check_key(given, "place")
    assert not given or str(given) not in str(error.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (f'secret = "{SECRET}', "expected TOML with secret, server"),
        (f"{SECRET}\n", "expected TOML with secret, server"),
        (f'secret = "{SECRET}"\nother = 1\n', "expected secret, server, got other too"),
        (b"\xff\xfe", "expected TOML, got other bytes"),
    ],
    ids=["no end", "no name", "another name", "no text"],
)
def test_a_file_that_is_no_key_file_is_named_and_not_quoted(
    tmp_path: Path, content: str | bytes, what: str
) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        read_key_file(path, ("server", "secret"))
    assert str(error.value) == f"{path}: {what}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}/no: No such file"):
        read_key_file(tmp_path / "no", ())


# -- the client's, from its environment -------------------------------------------------


def key_file(tmp_path: Path, **said: str) -> Path:
    path = tmp_path / "client.key"
    path.write_text("".join(f'{name} = "{key}"\n' for name, key in said.items()))
    path.chmod(0o600)
    return path


def test_without_variables_there_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys.from_environment() is None
    monkeypatch.setenv("RANKTAP_KEY_FILE", "")
    assert keys.from_environment() is None


def test_keys_come_from_a_file_or_from_two_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = keys.Keys(server=PUBLIC, secret=SECRET)
    path = key_file(tmp_path, server=PUBLIC, secret=SECRET)
    with monkeypatch.context() as one:
        one.setenv("RANKTAP_KEY_FILE", str(path))
        assert keys.from_environment() == expected
    monkeypatch.setenv("RANKTAP_SERVER_KEY", PUBLIC)
    monkeypatch.setenv("RANKTAP_KEY", SECRET)
    assert keys.from_environment() == expected
    assert expected.public == PUBLIC  # the one that belongs to the secret


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"RANKTAP_KEY": SECRET}, "^RANKTAP_SERVER_KEY: expected a key"),
        ({"RANKTAP_SERVER_KEY": PUBLIC}, "^RANKTAP_KEY: expected a key"),
        ({"RANKTAP_SERVER_KEY": PUBLIC, "RANKTAP_KEY": "short"}, "^RANKTAP_KEY: .*5 characters"),
        ({"RANKTAP_KEY_FILE": "x", "RANKTAP_KEY": SECRET}, "^RANKTAP_KEY_FILE: .*got both"),
        ({"RANKTAP_KEY_FILE": "/none"}, "^RANKTAP_KEY_FILE: /none: No such file"),
    ],
)
def test_variables_that_name_no_pair_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], what: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=what) as error:
        keys.from_environment()
    assert SECRET not in str(error.value)


def test_a_file_that_lacks_a_key_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = key_file(tmp_path, server=PUBLIC)
    monkeypatch.setenv("RANKTAP_KEY_FILE", str(path))
    with pytest.raises(ValueError, match=f"^RANKTAP_KEY_FILE: {path}: secret: expected a key"):
        keys.from_environment()


def test_a_secret_that_others_may_read_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = key_file(tmp_path, server=PUBLIC, secret=SECRET)
    monkeypatch.setenv("RANKTAP_KEY_FILE", str(path))
    with caplog.at_level(logging.WARNING, "ranktap"):
        keys.from_environment()
        assert caplog.text == ""
        path.chmod(0o644)
        keys.from_environment()
    assert "can be read by others" in caplog.text
