"""What the fuzzer has found worth keeping, and changes of it: nothing of it breaks a promise.

`fuzz` is the fuzzer, which needs a package of its own; this runs everywhere, and the same
each time. RANKTAP_FUZZ_ROUNDS=n makes more of it.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import mutations, seeds
from tests.fuzz.targets import TARGETS, fold, pack, unpack, wire

CORPUS = Path(__file__).with_name("corpus")
ROUNDS = int(os.environ.get("RANKTAP_FUZZ_ROUNDS", "1"))
CHANGED = {"wire": 4_000, "answer": 2_000, "fold": 1_500, "journal": 1_500}
"""Changed inputs of each target, a round."""
SLOWEST_S = 5.0
"""A bound of an input of at most 64 KiB: what takes longer would hold up everybody."""


def _inputs(target: str) -> list[bytes]:
    kept = sorted(path for path in (CORPUS / target).iterdir() if path.is_file())
    return seeds.seeds(target) + [path.read_bytes() for path in kept]


@contextmanager
def _named(data: bytes) -> Iterator[None]:
    """Says which input it was, so that it can be kept; and that it took too long."""
    began = time.process_time()
    try:
        yield
    except Exception as error:
        raise AssertionError(f"broken by the input {data!r}") from error
    assert time.process_time() - began < SLOWEST_S, f"too slow: {data!r}"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is odd in a record is told in the log; thousands of them are no news here."""
    logging.disable(logging.CRITICAL)
    with np.errstate(all="ignore"):
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS)
def test_everything_in_the_corpus_keeps_the_promises(target: str) -> None:
    inputs = _inputs(target)
    assert len(inputs) >= 10
    for data in inputs:
        with _named(data):
            TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_changed_inputs_of_the_corpus_keep_the_promises(target: str) -> None:
    inputs = _inputs(target)
    for number in range(CHANGED[target] * ROUNDS):
        rng = random.Random(f"{target} {number}")
        data = rng.choice(inputs)
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = mutations.mutate(target, data, rng)
        with _named(data):
            TARGETS[target](data)


def test_a_message_as_bytes_is_the_message_again() -> None:
    for data in seeds.seeds("wire"):
        parts = unpack(data)
        assert pack(parts) == data
        wire(data)
        fold(data)


def test_a_sealed_segment_is_the_one_that_was_written() -> None:
    for data in seeds.seeds("journal"):
        assert mutations.seal(data) == data
