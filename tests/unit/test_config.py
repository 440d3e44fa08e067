"""Settings: where they come from, what they may be, and what is said when they are not."""

from __future__ import annotations

import dataclasses
import grp
from pathlib import Path
from typing import Any

import pytest

from ranktapd import config
from ranktapd.config import RULES, Config, ConfigError

LOGDIR = {"logdir": "/logs"}


def build(settings: dict[str, Any], **named: Any) -> Config:
    return config.build([("file.toml", LOGDIR | settings)], **named)


def test_every_setting_has_a_rule_and_a_default_that_obeys_it() -> None:
    fields = [each.name for each in dataclasses.fields(Config)]
    assert fields == list(RULES) or set(fields) == set(RULES)
    for name, value in vars_of(Config()).items():
        if value is not None and name != "logdir":
            assert RULES[name].read(value) == value


def vars_of(settings: Config) -> dict[str, Any]:
    return {each.name: getattr(settings, each.name) for each in dataclasses.fields(Config)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logdir", ""), ("logdir", 7), ("logdir", "a\0b"),
        ("state_dir", []),
        ("listen", "tcp://127.0.0.1:1"), ("listen", [7]), ("listen", ["tcp://127.0.0.1"]),
        ("listen", ["tcp://127.0.0.1:65536"]), ("listen", ["tcp://:1"]), ("listen", ["udp://a:1"]),
        ("listen", ["tcp://127.0.0.1:*"]), ("listen", ["tcp://127.0.0.1:-1"]),
        ("listen", ["ipc://"]), ("listen", ["ipc://@abstract"]), ("listen", ["ipc://" + "x" * 108]),
        ("socket_group", "no such group"), ("socket_group", 7),
        ("server_key", 7), ("client_keys", False),
        ("insecure", 1), ("insecure", "yes"),
        ("metrics", "localhost"), ("metrics", ":9000"), ("metrics", "localhost:http"),
        ("sync", "on"), ("sync", True), ("on_conflict", "ignore"), ("on_conflict", None),
        ("straggler_timeout_s", 0), ("straggler_timeout_s", 86_401), ("straggler_timeout_s", "10"),
        ("straggler_timeout_s", float("nan")), ("straggler_timeout_s", True),
        ("segment_bytes", 65_535), ("segment_bytes", 1e6), ("segment_bytes", 1 << 33),
        ("min_free_bytes", -1), ("max_runs", 0), ("max_workers", 0), ("max_sessions", 0),
        ("max_message_bytes", 1), ("max_message_bytes", 1 << 40),
        ("max_session_batches_per_s", 0), ("max_session_bytes_per_s", 1),
        ("max_journal_bytes", 0), ("max_run_journal_bytes", 0),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_its_file_its_name_and_what_is_allowed(
    name: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as error:
        build({name: value})
    assert str(error.value) == f"file.toml: {name}: expected {RULES[name].allowed}, got {value!r}"


def test_all_settings_can_be_set(tmp_path: Path) -> None:
    group = grp.getgrall()[0].gr_name
    wanted: dict[str, Any] = {
        "logdir": tmp_path, "state_dir": tmp_path / "state",
        "listen": ["ipc:///run/x.sock", "tcp://[::1]:1", "tcp://localhost:65535"],
        "socket_group": group, "server_key": tmp_path / "key", "client_keys": tmp_path / "clients",
        "insecure": True, "metrics": "127.0.0.1:0", "log_format": "json",
        "sync": "off", "on_conflict": "suffix",
        "straggler_timeout_s": 2.5, "keep_finished_s": 0.0,
        "segment_bytes": 1 << 16, "min_free_bytes": 0, "max_journal_bytes": 1 << 30,
        "max_run_journal_bytes": 1 << 29, "max_runs": 1, "max_run_tags": 1, "max_workers": 1,
            "max_sessions": 1,
        "max_message_bytes": 1 << 20, "max_session_batches_per_s": 1,
        "max_session_bytes_per_s": 1 << 20,
    }  # fmt: skip
    assert set(wanted) == set(RULES)
    path = tmp_path / "ranktapd.toml"
    path.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in wanted.items()))
    assert vars_of(config.build([(str(path), config.read_file(path))])) == wanted


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else f'"{value}"'


def test_the_command_line_goes_before_the_file() -> None:
    settings = config.build(
        [
            ("file.toml", LOGDIR | {"max_runs": 5, "max_workers": 5}),
            ("command line", {"max_runs": 7}),
        ]
    )
    assert (settings.max_runs, settings.max_workers) == (7, 5)
    with pytest.raises(ConfigError, match=r"^command line: max_runs: expected .*, got 0$"):
        config.build([("file.toml", LOGDIR | {"max_runs": 5}), ("command line", {"max_runs": 0})])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "colour = 1\n",
            ": colour: no such setting; allowed are client_keys, insecure, keep_finished_s, ",
        ),
        ("[limits]\nmax_runs = 1\n", ": limits: no such setting; allowed are "),
        ("max_runs = \n", ": Invalid value (at line 1, column 12)"),
        ("max_runs = 1\nmax_runs = 2\n", ": Cannot overwrite a value (at line 2, column 13)"),
    ],
)
def test_a_file_that_is_wrong_is_told_with_the_place(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "ranktapd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        config.read_file(path)
    assert str(error.value).startswith(f"{path}{what}")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: No such file or directory"):
        config.read_file(tmp_path / "none")


def test_a_logdir_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^file\.toml: logdir: expected a directory, got none$"):
        config.build([("file.toml", {}), ("command line", {})])


# -- where it listens -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "reachable"),
    [
        ("ipc:///run/x.sock", False), ("tcp://127.0.0.1:1", False), ("tcp://127.9.9.9:1", False),
        ("tcp://localhost:1", False), ("tcp://[::1]:1", False), ("tcp://0.0.0.0:1", True),
        ("tcp://*:1", True), ("tcp://[::]:1", True), ("tcp://10.0.0.1:1", True),
        ("tcp://loghost:1", True), ("tcp://eth0:1", True), ("tcp://[::ffff:10.0.0.1]:1", True),
    ],
)  # fmt: skip
def test_what_other_machines_reach_takes_keys_or_ones_own_word(
    endpoint: str, reachable: bool
) -> None:
    keys = {"server_key": "/k", "client_keys": "/c"}
    assert config.is_reachable(endpoint) is reachable
    for allowed in ({"insecure": True}, keys):
        assert build({"listen": [endpoint]} | allowed).listen == [endpoint]
    if reachable:
        with pytest.raises(ConfigError, match=r"is reachable from other machines.*ranktapd keygen"):
            build({"listen": [endpoint]})
        with pytest.raises(ConfigError, match="is reachable from other machines"):
            build({}, inherited=[endpoint])
    else:
        assert build({"listen": [endpoint]}).listen == [endpoint]


@pytest.mark.parametrize(("given", "lacks"), [("server_key", "client_keys"),
                                              ("client_keys", "server_key")])  # fmt: skip
def test_the_servers_key_and_the_clients_belong_together(given: str, lacks: str) -> None:
    with pytest.raises(ConfigError, match=f"^file.toml: {lacks}: expected .* beside {given}"):
        build({given: "/x"})


def test_sockets_that_were_handed_over_take_the_place_of_the_default() -> None:
    assert build({}).listen == config.default_endpoints()
    assert build({}, inherited=["ipc:///run/a"]).listen == ["ipc:///run/a"]
    own = build({"listen": ["tcp://127.0.0.1:1"]}, inherited=["ipc:///run/a", "tcp://127.0.0.1:1"])
    assert own.listen == ["tcp://127.0.0.1:1", "ipc:///run/a"]


def test_what_has_changed_is_named_and_what_a_running_daemon_takes_is_known() -> None:
    assert config.changed(build({}), build({"max_runs": 7, "sync": "off"})) == ["sync", "max_runs"]
    fixed = {name for name, rule in RULES.items() if not rule.reloads}
    assert fixed == {
        "logdir", "state_dir", "listen", "socket_group", "server_key", "client_keys", "insecure",
        "metrics", "log_format", "sync", "segment_bytes",
    }  # fmt: skip
