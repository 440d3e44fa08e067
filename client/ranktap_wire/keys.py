"""CURVE keys as both sides keep them: 40 characters, in small TOML files.

    alice.key       server = "..."     the daemon's public key
                    secret = "..."     the client's own; nobody else's business
    server.key      secret = "..."     the daemon's own
                    public = "..."     for who copies it
    alice.toml      public = "..."     lets the client in
                    runs = ["alice/*"]     what it may write; without it, every run

A key is 32 bytes, written in Z85 (ZeroMQ RFC 32), whose 85 characters need no escapes in TOML.
No error of this module quotes what it read: it may be a secret.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

KEY_CHARACTERS: Final = 40
_ALPHABET: Final = string.digits + string.ascii_lowercase + string.ascii_uppercase + (
    ".-:+=^!/*?&<>()[]{}@%$#"
)  # fmt: skip
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}


def check_key(key: object, name: str) -> str:
    """The key, when it is one; `name` is where it was given.

    Raises:
        ValueError: it is not 40 characters of Z85.
    """
    if not isinstance(key, str):
        raise ValueError(f"{name}: expected a key of {KEY_CHARACTERS} characters, got none")
    if len(key) != KEY_CHARACTERS:
        raise ValueError(
            f"{name}: expected a key of {KEY_CHARACTERS} characters, got {len(key)} characters"
        )
    for at in range(0, KEY_CHARACTERS, 5):
        number = 0
        for character in key[at : at + 5]:
            number = number * 85 + _VALUES.get(character, 1 << 32)
        if number >= 1 << 32:  # five digits hold four bytes, and a little more
            raise ValueError(f"{name}: expected a key in Z85, got other characters")
    return key


def read_key_file(path: Path, allowed: Collection[str]) -> dict[str, Any]:
    """What a key file says; it may say nothing but `allowed`.

    Raises:
        ValueError: it is not such a file, or cannot be read; the message begins with its path.
    """
    try:
        said = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected TOML, got other bytes") from None
    except tomllib.TOMLDecodeError:
        # Its message may quote the line.
        raise ValueError(f"{path}: expected TOML with {', '.join(sorted(allowed))}") from None
    strange = set(said) - set(allowed)
    if strange:
        raise ValueError(
            f"{path}: expected {', '.join(sorted(allowed))}, got {', '.join(sorted(strange))} too"
        )
    return said
