"""The job in the Text tab: ranks, their coming and going, what code they run."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ranktap_wire.records import Batch
from ranktapd.entries import RunBegins, SessionGone, SessionOpened
from ranktapd.fold import Fold
from ranktapd.job_summary import HISTORY, ROWS, moment
from ranktapd.render.tables import code, plain, table
from tests.support.messages import columns
from tests.unit.test_fold import Journal
from tests.unit.test_non_finite import rows_of, texts

with warnings.catch_warnings():
    # TensorBoard's own sanitizer says that a part of it is deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard.plugin_util import markdown_to_safe_html

ABOUT = {
    "job": "torchrun-1", "device": "cuda:0 H100", "python": "3.11.2", "torch": "2.13.0",
    "ranktap": "0.1.0", "git": "a1b2c3+", "command": "python train.py --lr=0.1 | tee log",
}  # fmt: skip
START = 1_700_000_000.0


def identity(session: int) -> bytes:
    return session.to_bytes(16, "little")


def opens(
    journal: Journal, session: int, rank: int, world_size: int = 2, **changed: object
) -> str | None:
    """A rank says hello; the text that comes of it."""
    said = {"host": f"node-{rank}", "pid": 100 + session, "started": START + session} | changed
    about = said.pop("about", ABOUT)
    words = SessionOpened(
        session=identity(session), rank=rank, world_size=world_size, resume_step=None, last=0,
        about=about, **said,  # type: ignore[arg-type]
    )  # fmt: skip
    journal.say(words)
    return last(journal)


def goes(journal: Journal, session: int, *, final: bool, replaced: bool = False) -> str | None:
    journal.say(SessionGone(identity(session), final, replaced))
    return last(journal)


def last(journal: Journal) -> str | None:
    """The text of the last group; there is one at most."""
    found = [text for _, text in texts(journal.last.join(), "ranktap/job")]
    assert len(found) <= 1
    return found[0] if found else None


def rank_rows(text: str | None) -> list[list[str]]:
    """The cells of the table of ranks."""
    assert text is not None
    return rows_of(text.split("\n\n")[1])


def begun() -> Journal:
    journal = Journal()
    journal.say(RunBegins(START, "daemon", 1, ""))
    return journal


def test_every_rank_has_a_row_with_what_it_says_of_itself() -> None:
    journal = begun()
    opens(journal, 1, 1)
    text = opens(journal, 0, 0, about=ABOUT | {"device": "cuda:1 H100"})
    assert text is not None and text.startswith("**2 ranks**, 2 running\n")
    joined = ["2023-11-14 22:13:20", "2023-11-14 22:13:21"]
    assert rank_rows(text) == [
        ["0", "node-0", "100", "cuda:1 H100", joined[0], "", "running", "0", "0"],
        ["1", "node-1", "101", "cuda:0 H100", joined[1], "", "running", "0", "0"],
    ]


def test_versions_commit_and_command_line_are_shown_as_they_are() -> None:
    journal = begun()
    opens(journal, 0, 0)
    text = opens(journal, 1, 1, about={"torch": "2.12.0", "git": "ffff", "command": "other"})
    assert text is not None
    html = markdown_to_safe_html(text)
    for shown in ("<td>3.11.2</td>", "<td>2.13.0; 2.12.0 on rank 1</td>", "<code>a1b2c3+</code>",
                  "python train.py --lr=0.1 &#124; tee log"):  # fmt: skip
        assert shown in html, shown
    assert "other" not in html, "rank 0's command line is the job's"


def test_a_text_comes_when_a_session_opens_or_goes_and_not_otherwise() -> None:
    journal = begun()
    assert opens(journal, 0, 0) is not None
    assert opens(journal, 1, 1) is not None
    journal.scalar(0, 1, "loss", 3, 1.0)
    journal.scalar(1, 1, "loss", 3, 1.0)
    assert last(journal) is None
    assert goes(journal, 0, final=True) is not None


def test_a_process_that_is_alone_has_no_summary() -> None:
    journal = begun()
    assert opens(journal, 0, 0, world_size=1) is None
    assert goes(journal, 0, final=True) is None
    assert texts(journal.output, "ranktap/job") == []


def test_a_rank_that_left_one_that_is_lost_and_one_that_is_back_are_told_apart() -> None:
    journal = begun()
    opens(journal, 0, 0)
    opens(journal, 1, 1)
    given = columns([1.0], ("loss",))
    given.wall_time = np.array([START + 60])
    journal.batch(1, 1, Batch(given, dropped_scalars=7, dropped_blobs=1))
    text = goes(journal, 1, final=False)
    assert text is not None and "1 running; not heard of any more: 1" in text
    assert rank_rows(text)[1][5:] == ["22:14:20", "lost", "8", "0"]
    assert "| 2023-11-14 22:14:20 | rank 1 is not heard of any more |" in text
    text = opens(journal, 1, 1)
    assert rank_rows(text)[1][6] == "running"
    assert text is not None and "rank 1 is back" in text
    text = goes(journal, 0, final=True)
    assert [row[6] for row in rank_rows(text)] == ["left", "running"]


def test_a_job_that_is_started_again_says_so_and_keeps_what_was_dropped() -> None:
    journal = begun()
    opens(journal, 0, 0)
    opens(journal, 1, 1)
    given = columns([1.0] * 30, ("loss",))
    journal.batch(1, 1, Batch(given, dropped_scalars=5))
    goes(journal, 1, final=True, replaced=True)
    text = opens(journal, 11, 1, world_size=3)
    assert text is not None
    assert text.startswith("**3 ranks**, 2 running; 1 not here yet\n")
    assert rank_rows(text)[1][7] == "5"
    assert "the job was started again, with 3 ranks; it had come to step 29" in text
    assert [row[1] for row in rows_of(text.split("\n\n")[3])] == [
        "the job was started again, with 3 ranks; it had come to step 29",
        "rank 1 is process 111 on node-1 now, which was 101 on node-1",
        "rank 1 has ended without a goodbye",
    ], "in the order of their times, by the ranks' own clocks"
    assert "rank 1 is process 111 on node-1 now, which was 101 on node-1" in text


def test_a_rank_that_said_goodbye_or_is_lost_already_has_not_ended_without_one() -> None:
    journal = begun()
    for session, rank in enumerate((0, 1)):
        opens(journal, session, rank)
    assert goes(journal, 0, final=True) is not None
    assert goes(journal, 1, final=False) is not None
    goes(journal, 1, final=True, replaced=True)
    text = opens(journal, 11, 1)
    assert text is not None and "rank 1 is process 111" in text
    assert "without a goodbye" not in text


def test_late_records_are_counted_for_the_rank_that_was_late() -> None:
    journal = begun()
    opens(journal, 0, 0)
    opens(journal, 1, 1)
    for session in (0, 1):
        journal.scalar(session, 1, "loss", 5, 1.0)
    for number, step in enumerate((2, 3), 2):
        journal.scalar(1, number, "loss", step, 1.0)
    assert [row[8] for row in rank_rows(goes(journal, 0, final=True))] == ["0", "2"]


def test_of_a_large_job_the_ranks_with_something_to_say_are_shown() -> None:
    journal = begun()
    world_size = ROWS + 50
    for rank in range(world_size):
        opens(journal, rank, rank, world_size)
    text = goes(journal, world_size - 1, final=False)
    assert text is not None and "\nand 50 more\n" in text
    shown = [int(row[0]) for row in rank_rows(text)]
    assert shown == [*range(ROWS - 1), world_size - 1]


def test_what_happened_is_bounded() -> None:
    journal = begun()
    opens(journal, 0, 0)
    for _ in range(HISTORY):
        goes(journal, 0, final=False)
        text = opens(journal, 0, 0)
    assert text is not None and text.count("rank 0 is back") == HISTORY // 2


def test_names_that_others_have_chosen_cannot_break_the_table() -> None:
    journal = begun()
    hostile = "a|b*c*<script>`x`\\|[y](http://z)"
    text = opens(journal, 0, 0, host=hostile, about={"device": hostile, "command": hostile})
    html = markdown_to_safe_html(text)
    assert "<script" not in html and "<a" not in html and "<em>" not in html
    assert html.count("<tr>") == 4, "two tables, each with its titles and a row"
    assert rank_rows(text)[0][0] == "0"


def test_a_wall_time_has_its_day_where_that_is_not_the_one_beside_it() -> None:
    assert moment(0.0) == "1970-01-01 00:00:00"
    assert moment(86_399.0, 0.0) == "23:59:59"
    assert moment(86_400.0, 0.0) == "1970-01-02 00:00:00"
    assert moment(86_400.0, 1e300) == "1970-01-02 00:00:00"


def test_a_wall_time_that_no_calendar_has_is_left_empty() -> None:
    assert moment(1e300) == moment(-1e300) == moment(None) == moment(None, 0.0) == ""


@pytest.mark.parametrize("text", ["a`b", "a|b", "\\", ""])
def test_code_that_backticks_cannot_hold_is_plain(text: str) -> None:
    assert code(text) == plain(text)


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_a_fold_goes_on_from_its_state_with_the_same_summary() -> None:
    whole, first = begun(), begun()
    for journal in (whole, first):
        opens(journal, 0, 0)
        opens(journal, 1, 1)
        goes(journal, 1, final=False)
    second = Journal(Fold.restore(first.fold.state(), ThreadPoolExecutor(1)))
    second.sequence = first.sequence
    for journal in (whole, second):
        opens(journal, 11, 1, 3)
        opens(journal, 12, 2, 3)
        goes(journal, 0, final=True)
    assert whole.output == first.output + second.output
    assert "rank 1 is process 111" in (last(second) or "")
