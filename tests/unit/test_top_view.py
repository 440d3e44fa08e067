"""What `ranktap top` shows: columns, order, and what goes where there is little room."""

from __future__ import annotations

from typing import Any

import pytest

from ranktap import tables, top_view
from ranktap.top_view import Line, Looks, Style, in_order, view

ADDRESS = "127.0.0.1:9757"


def a_rank(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "rank": number, "host": "node-7", "pid": 4_711 + number, "state": "here", "heard_s": 0.2,
        "batches": 9, "dropped": 0, "late": 0, "records_per_s": 50.0, "bytes_per_s": 3_000.0,
        "step": 120, "step_s": 0.1, "step_time_s": 0.25, "slow_since": None,
    } | changed  # fmt: skip


def a_run(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "run": name, "world_size": 4, "sessions": 4, "entries": 100, "written": 100,
        "lag_entries": 0, "lag_bytes": 0, "lag_s": 0.0, "records_per_s": 1_234.5,
        "bytes_per_s": 56_789.0, "dropped": 0, "late": 0, "step": 120,
        "last": [{"tag": "train/loss", "step": 119, "value": 0.123456789}],
        "refused": None, "worker": "waits", "ranks": [],
    } | changed  # fmt: skip


def a_status(*runs: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "version": "0.1.0", "health": "ok", "up_s": 12.0, "sessions": 4, "records_per_s": 1_234.5,
        "bytes_per_s": 56_789.0, "runs": list(runs),
    } | changed  # fmt: skip


def shown(
    status: dict[str, Any], looks: Looks | None = None, columns: int = 200, rows: int = 50
) -> list[Line]:
    found = view(status, ADDRESS, looks or Looks(), columns, rows)
    assert len(found) <= rows
    assert all(tables.cells(line.text) <= columns for line in found)
    return found


def test_a_run_is_a_line_with_what_a_person_wants_to_know() -> None:
    head, names, row = shown(a_status(a_run("digits/lr=0.1", lag_s=1.25, lag_bytes=9_999)))
    assert head == (
        f"ranktapd 0.1.0 at {ADDRESS}: ok; up 12 s, 4 sessions, 1,234 records/s, 56.8 kB/s",
        Style.HEAD,
    )
    assert names.text.split() == [
        "run", "ranks", "records/s", "bytes/s", "lag", "behind", "dropped", "late", "step",
        "loss", "of", "worker",
    ]  # fmt: skip
    assert row.text.split() == [
        "digits/lr=0.1", "4/4", "1,234", "56.8", "kB", "1.2", "s", "10.0", "kB", "0", "0",
        "120", "0.12346", "train/loss", "waits",
    ]  # fmt: skip
    assert row.style is Style.PLAIN


def test_what_is_not_known_yet_is_a_dash_and_a_daemon_of_an_older_release_is_shown() -> None:
    run = a_run("a", lag_s=None, late=None, step=None, last=[])
    cells = shown(a_status(run))[2].text.split()
    assert cells.count("-") == 4
    for name in ("lag_s", "late", "step", "last"):
        del run[name]
    assert shown(a_status(run))[2].text.split() == cells


@pytest.mark.parametrize(
    ("tag", "value"),
    [(None, "0.5"), ("val/*", "nan"), ("*acc*", "0.75"), ("*nothing*", "-"), ("", "-")],
)
def test_the_value_is_that_of_a_loss_or_of_a_tag_like_the_one_asked_for(
    tag: str | None, value: str
) -> None:
    last = [
        {"tag": "Loss/train", "step": 1, "value": 0.5},
        {"tag": "val/loss", "step": 1, "value": "nan"},
        {"tag": "accuracy", "step": 1, "value": 0.75},
    ]
    _, names, row = shown(a_status(a_run("a", last=last)), Looks(tag=tag))
    assert ("loss" in names.text.split()) == (tag is None)
    assert ("value" in names.text.split()) == (tag is not None)
    assert row.text.split()[12] == value


def test_runs_come_in_the_order_that_was_asked_for() -> None:
    runs = [
        a_run("a", records_per_s=1.0, lag_s=5.0, step=None, last=[]),
        a_run("b", records_per_s=3.0, lag_s=None, step=7),
        a_run("c", records_per_s=2.0, lag_s=0.0, step=9, dropped=1, late=2, lag_bytes=1,
              last=[{"tag": "loss", "step": 1, "value": 0.1}]),
    ]  # fmt: skip
    wanted = {
        "run": "abc", "rate": "bca", "bytes": "abc", "lag": "bac", "behind": "cab",
        "dropped": "cab", "late": "cab", "step": "cba", "loss": "cba",
    }  # fmt: skip
    assert [*wanted] == [*top_view.SORTS]
    for sort, order in wanted.items():
        found = in_order(runs, Looks(sort=sort))
        assert "".join(run["run"] for run in found) == order, sort


def test_where_it_is_narrow_columns_go_that_one_can_do_without_and_then_names_are_cut() -> None:
    name = "team/" + "very-long-" * 10
    status = a_status(a_run(name), a_run("短い名前"))
    titles = {columns: shown(status, columns=columns)[1].text.split() for columns in range(8, 220)}
    assert len(titles[219]) == 12
    counts = [len(titles[columns]) for columns in range(8, 220)]
    assert counts == sorted(counts)
    assert titles[50][0] == "run" and titles[50][-2:] == ["step", "loss"]
    assert titles[8] == ["run"]
    assert "…" in shown(status, columns=80)[2].text + shown(status, columns=80)[3].text
    assert name in shown(status, columns=219)[2].text


def test_where_it_is_low_rows_go_and_it_says_how_many_but_not_the_chosen_one() -> None:
    status = a_status(*(a_run(f"run {number:02}") for number in range(40)))
    found = shown(status, rows=10)
    assert [line.text.partition("  ")[0] for line in found[2:-1]] == [
        f"run {number:02}" for number in range(7)
    ]
    assert found[-1] == ("and 33 more runs", Style.DIM)
    found = shown(status, Looks(chosen="run 20"), rows=10)
    (chosen,) = (line for line in found if line.style is Style.CHOSEN)
    assert chosen.text.startswith("run 20")
    for rows in range(1, 6):
        shown(status, rows=rows)


def test_ranks_are_shown_of_the_run_that_is_opened_and_the_slow_and_the_lost_stand_out() -> None:
    ranks = [
        a_rank(0),
        a_rank(1, slow_since=1_100, step_time_s=1.5),
        a_rank(2, state="away", step=None, step_s=None, step_time_s=None, heard_s=99.0),
    ]
    status = a_status(a_run("a", sessions=2, ranks=ranks), a_run("b"))
    found = shown(status, Looks(opened="a"))
    assert [line.text.partition("  ")[0] for line in found[1:3]] == ["run", "a"]
    assert found[2].style is Style.NOTE  # not all of its ranks are here
    assert not any(line.text.startswith("b") for line in found)
    names, *rows = found[4:]
    assert names.text.split()[:6] == ["rank", "host", "is", "step", "since", "a"]
    assert [line.style for line in rows] == [Style.PLAIN, Style.NOTE, Style.DIM]
    assert "250.0 ms" in rows[0].text and "1.5 s" in rows[1].text
    assert rows[1].text.endswith("slow since step 1,100")
    assert "99 s ago" in rows[2].text
    assert shown(status, Looks(opened="c"))[1].text == "no run 'c' is open"
    many = a_run("a", ranks=[a_rank(number) for number in range(1_000)])
    found = shown(a_status(many), Looks(opened="a"), rows=24)
    assert found[-1].text == "and 982 more ranks" and len(found) == 24


def test_a_run_that_is_refused_and_ill_health_are_said_in_a_line_of_their_own() -> None:
    run = a_run("a", refused="99 bytes of it are not written yet")
    found = shown(a_status(run, health="ok, but nothing is accepted: no room"))
    assert found[0].style is Style.BAD
    assert found[2].style is Style.BAD and found[2].text.endswith("REFUSED")
    assert found[3].text == "a: nothing is accepted: 99 bytes of it are not written yet"
    assert shown(a_status())[1].text == "no run is open"


def test_nothing_of_a_name_reaches_the_terminal_that_it_would_obey() -> None:
    hostile = "\x1b[2J\nx\x9b"
    run = a_run(
        hostile, refused=hostile, ranks=[a_rank(0, host=hostile)],
        last=[{"tag": f"loss{hostile}", "step": 1, "value": 1.0}],
    )  # fmt: skip
    for looks in (Looks(), Looks(opened=hostile)):
        for columns in (10, 40, 200):
            for line in shown(a_status(run, health=hostile), looks, columns):
                assert line.text.isprintable()
