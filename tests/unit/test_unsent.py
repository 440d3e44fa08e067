"""Which sessions of a spool go together, in which order, and which are left."""

from __future__ import annotations

from pathlib import Path

import pytest

from ranktap.spool import Spool
from ranktap.spooled import MARKER, SpoolError, session_directories
from ranktap.unsent import UnsentSession, find_sessions, lives_of, open_session, ranks_text
from ranktap_wire.messages import Hello
from ranktap_wire.segment import segments
from tests.unit.test_backlog import batch, number_in


def session(
    rank: int, started: float, *, run: str = "run", world_size: int = 2, job: str | None = None,
    reached: bool = False, first: int = 1,
) -> UnsentSession:  # fmt: skip
    about = {} if job is None else {"job": job}
    hello = Hello(
        bytes([rank, int(started), *bytes(14)]), run, rank, world_size, "h", 1, 1, started,
        about=about,
    )  # fmt: skip
    return UnsentSession(Path("/spool"), hello, reached, lock=object(), first=first)  # type: ignore[arg-type]


def lives(*sessions: UnsentSession) -> list[list[tuple[int, float]]]:
    """(rank, started) of each life of the one run."""
    (found,) = lives_of(sessions).values()
    return [[(s.hello.rank, s.hello.started) for s in life.sessions] for life in found]


def test_the_ranks_of_a_job_are_one_life_in_the_order_of_ranks() -> None:
    assert lives(session(1, 3.0), session(0, 4.0)) == [[(0, 4.0), (1, 3.0)]]


def test_a_rank_that_comes_again_begins_the_next_life() -> None:
    again = [session(0, 10.0), session(1, 9.0)]
    first = [session(0, 1.0), session(1, 2.0)]
    assert lives(*again, *first) == [[(0, 1.0), (1, 2.0)], [(0, 10.0), (1, 9.0)]]


def test_another_job_is_another_life_although_its_ranks_are_others() -> None:
    found = lives(session(0, 1.0, job="a"), session(1, 2.0, job="b"), session(0, 3.0, job="b"))
    assert found == [[(0, 1.0)], [(0, 3.0), (1, 2.0)]]


def test_runs_are_apart() -> None:
    assert [*lives_of([session(0, 1.0, run="a"), session(0, 2.0, run="b")])] == ["a", "b"]


@pytest.mark.parametrize(
    ("known", "partial", "why"),
    [
        ({}, False, "rank 1 of 2 have nothing here"),
        ({}, True, None),
        ({"reached": True}, False, None),
        ({"first": 5}, False, None),
        ({"world_size": 1}, False, None),
    ],
)
def test_a_life_that_lacks_ranks_is_left_unless_they_have_reached_a_daemon(
    known: dict[str, int], partial: bool, why: str | None
) -> None:
    ((life,),) = lives_of([session(0, 1.0, **known)]).values()  # type: ignore[arg-type]
    said = life.why_not(partial=partial)
    assert said is None if why is None else said is not None and why in said


def test_a_life_of_which_one_is_still_written_is_left_whole() -> None:
    alive = session(1, 1.0)
    alive.lock = None
    ((life,),) = lives_of([session(0, 1.0), alive]).values()
    said = life.why_not(partial=True)
    assert said is not None and said.startswith("rank 1 may still write (process 1 on h)")


def test_many_ranks_are_named_in_part() -> None:
    assert ranks_text([3]) == "rank 3"
    assert ranks_text(range(20)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"


def left_by(root: Path, rank: int, batches: int) -> Spool:
    spool = Spool(root, session(rank, 1.0).hello, segment_bytes=400)
    spool.prepare()
    for number in range(1, batches + 1):
        spool.append([(number, batch(number))], 1.0)
    spool.close()
    return spool


def test_a_session_is_read_from_its_first_batch_to_its_last(tmp_path: Path) -> None:
    spool = left_by(tmp_path, 1, 7)
    assert len(segments(spool.directory)) > 2
    ((found,), failed) = find_sessions([tmp_path, tmp_path / "run", spool.directory])
    assert not failed and found.reader is not None
    assert (found.hello.rank, found.first, found.reached) == (1, 1, False)
    read = [found.reader.next(found.upto) for _ in range(8)]
    assert [number_in(each) for each in read if each is not None] == [1, 2, 3, 4, 5, 6, 7]
    found.remove()
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


def test_segments_that_are_gone_have_arrived(tmp_path: Path) -> None:
    spool = left_by(tmp_path, 1, 7)
    first = spool.directory / f"{segments(spool.directory)[0]:020d}.journal"
    first.unlink()
    found = open_session(spool.directory)
    assert found is not None and found.first is not None and found.first > 1 and found.was_reached
    found.close()


def test_a_directory_in_which_nothing_is_left_is_removed(tmp_path: Path) -> None:
    spool = left_by(tmp_path, 1, 1)
    for path in spool.directory.glob("*.journal"):
        path.unlink()
    assert open_session(spool.directory) is None
    assert not spool.directory.exists()


def test_files_that_are_no_spools_are_left_and_said(tmp_path: Path) -> None:
    spool = left_by(tmp_path, 1, 1)
    (path,) = spool.directory.glob("*.journal")
    path.write_bytes(b"something else" * 10)
    found, ((directory, error),) = find_sessions([tmp_path])
    assert not found and directory == spool.directory.resolve()
    assert "not a segment of a ranktap journal" in str(error)
    assert path.read_bytes() == b"something else" * 10


def test_a_journal_that_is_not_a_spools_is_left_and_said(tmp_path: Path) -> None:
    from ranktap_wire.journal import JournalWriter

    spool = left_by(tmp_path, 1, 1)
    for path in spool.directory.glob("*.journal"):
        path.unlink()
    writer = JournalWriter(spool.directory)
    writer.append([[b"\x81\xa4kind\xa3run"]])
    writer.close()
    with pytest.raises(SpoolError, match="is not one that this release of ranktap knows"):
        open_session(spool.directory)


def test_sessions_are_found_below_a_spool_a_run_and_alone(tmp_path: Path) -> None:
    spool = left_by(tmp_path, 0, 1)
    for place in (tmp_path, spool.directory.parent, spool.directory):
        assert [*session_directories(place)] == [spool.directory]
    assert [*session_directories(tmp_path / "else")] == []
