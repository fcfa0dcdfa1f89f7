"""What is written down of a run, and what is not."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rl_lightning.experiments import generate_exp_id, prepare_output_dir
from rl_lightning.records import is_secret, mask_command, plain, record_run
from rl_lightning.types import ConfigurationError

GIT_FILES = {"git-head.txt", "git-status.txt", "git-log.txt", "git-diff.txt"}
FILES = {"args.txt", "command.txt", "environ.txt", "packages.txt", "start.txt"}


def git(*command: str) -> None:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    subprocess.run(["git", *identity, *command], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit, one change since, and one untracked file; the current directory."""
    path = tmp_path / "repository"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    git("init")
    (path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    (path / "code.py").write_text("a = 2\n")
    (path / "new").mkdir()
    (path / "new/untracked.py").write_text("")
    return path


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A current directory that is in no repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(directory) -> set[str]:
    return {path.name for path in Path(directory).iterdir()}


# ---- the record ------------------------------------------------------------------------------------------------------


def test_the_record_of_a_repository(repository, tmp_path):
    record_run(tmp_path / "run", {"lr": 0.1}, argv=["train.py", "--name", "two words"])
    assert names(tmp_path / "run") == FILES | GIT_FILES
    read = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert json.loads(read["args.txt"]) == {"lr": 0.1}
    assert read["command.txt"] == "train.py --name 'two words'\n"
    assert "?? new/untracked.py" in read["git-status.txt"] and " M code.py" in read["git-status.txt"]
    assert "-a = 1\n+a = 2" in read["git-diff.txt"]
    assert "first" in read["git-log.txt"] and read["git-head.txt"].strip() in read["git-log.txt"]
    assert f"\nnumpy=={np.__version__}\n" in read["packages.txt"]


def test_every_start_is_kept(outside):
    record_run("run", {})
    record_run("run", {})
    assert len(Path("run/start.txt").read_text().splitlines()) == 2


def test_of_two_starts_the_last_is_recorded(repository, monkeypatch):
    record_run("run", {})
    monkeypatch.setenv("PATH", "")
    record_run("run", {})
    assert names("run") == FILES


def test_the_users_git_config_changes_nothing(repository, tmp_path, monkeypatch):
    record_run("run", {})
    first, name = Path("run/git-diff.txt").read_text(), generate_exp_id(argv=[])
    config = tmp_path / "config"
    config.write_text("[color]\n ui = always\n[diff]\n external = false\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    record_run("run", {})
    assert Path("run/git-diff.txt").read_text() == first
    assert "\x1b" not in Path("run/git-log.txt").read_text()
    assert generate_exp_id(argv=[]) == name


def test_a_git_that_hangs_is_not_waited_for(repository, tmp_path, monkeypatch):
    command = tmp_path / "bin/git"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nexec sleep 60\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setattr("rl_lightning.records._GIT_TIMEOUT_S", 0.1)
    record_run("run", {})
    assert names("run") == FILES


def test_what_many_processes_write_at_once_is_whole(outside):
    """One command started several times has one name."""
    code = "from rl_lightning.records import record_run\nfor _ in range(5): record_run('run', {'a': 1})"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environ) for _ in range(3)]
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
    assert names("run") == FILES
    assert len(Path("run/start.txt").read_text().splitlines()) == 15


def test_without_git(outside):
    record_run("run", {})
    assert names("run") == FILES


def test_where_git_is_not_installed(outside, monkeypatch):
    monkeypatch.setenv("PATH", "")
    record_run("run", {})
    assert names("run") == FILES
    assert generate_exp_id(argv=[]).startswith("nogit-")


def test_a_repository_without_commits(outside):
    git("init")
    record_run("run", {})
    assert names("run") == FILES | {"git-status.txt"}
    assert generate_exp_id(argv=["a"]).startswith("nocommit-")
    assert "nocommit" in prepare_output_dir({})


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


class AnyAttribute:
    def __getattr__(self, name):
        return lambda: self

    def __repr__(self):
        return "anything"


@dataclasses.dataclass
class Arguments:
    lr: float
    api_key: str


class Unreadable(dict):
    def items(self):
        raise RuntimeError("no")


def circle():
    value: dict = {"a": 1}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (argparse.Namespace(lr=0.1, hidden=(64, 64)), {"lr": 0.1, "hidden": [64, 64]}),
        ({1: Path("a/b"), (2, 3): np.float32(0.5)}, {"1": "a/b", "(2, 3)": 0.5}),
        ({"a": np.arange(3), "nan": float("nan"), "inf": np.inf}, {"a": [0, 1, 2], "nan": "nan", "inf": "inf"}),
        (circle(), {"a": 1, "self": "..."}),
        ({"f": len, "u": Unprintable()}, {"f": "<built-in function len>", "u": "<Unprintable whose repr raised Runti"}),
        ({"dtype": np.float32, "long": np.longdouble(1)}, {"dtype": repr(np.float32), "long": repr(np.longdouble(1))}),
        ({Unprintable(): AnyAttribute()}, {"<Unprintable whose str raised Runti": "anything"}),
        (Arguments(lr=0.1, api_key="hidden"), {"lr": 0.1, "api_key": "***"}),
        ({"u": Unreadable(a=1), "b": 1}, {"u": "<Unreadable that raised Runti", "b": 1}),
        (Unreadable(a=1), "<Unreadable that raised Runti"),
        ({"n": 10**5000, "b": True}, {"n": hex(10**5000), "b": True}),
        ("just text", "just text"),
        (None, None),
    ],
)
def test_any_arguments_can_be_written(arguments, expected, outside):
    record_run("run", arguments)
    text = Path("run/args.txt").read_text()
    assert json.loads(text.replace("RuntimeError>", "Runti")) == expected


def test_what_is_deep_or_long_stays_readable(outside):
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    record_run("run", {"deep": deep, "long": np.zeros((1000, 1000)), "text": "a=" * 100_000})
    assert Path("run/args.txt").stat().st_size < 300_000


def test_the_same_object_twice_is_no_circle():
    shared = [1]
    assert plain({"a": shared, "b": shared}) == {"a": [1], "b": [1]}


# ---- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t-value"


def test_no_secret_is_written_down(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HARMLESS_LOOKING", SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    git("remote", "add", "origin", f"https://user:{SECRET}@example.org/repository")
    arguments = {"logger": {"api_key": SECRET}, "url": f"https://me:{SECRET}@host/x", "accessToken": SECRET}
    argv = ["train.py", "--api-key", SECRET, f"--wandb.token={SECRET}", f"http://a:{SECRET}@host", "--lr", "0.1"]
    outdir = prepare_output_dir(arguments, tmp_path, exp_id="run", argv=argv)
    assert names(outdir) == FILES | GIT_FILES
    for path in Path(outdir).iterdir():
        assert SECRET not in path.read_text()
    assert json.loads((Path(outdir) / "environ.txt").read_text())["OMP_NUM_THREADS"] == "7"
    assert "--lr 0.1" in (Path(outdir) / "command.txt").read_text()


def test_everything_of_the_environment_on_request(outside, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    record_run("run", {}, everything_of_environ=True)
    assert json.loads(Path("run/environ.txt").read_text())["WANDB_API_KEY"] == SECRET


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "--db-password",
        "api_key",
        "APIKEY",
        "hf_token",
        "authToken",
        "a.secret",
        "secrets",
        "PGPASSWORD",
        "api_keys",
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["max_tokens", "token_dim", "keyboard", "key", "lr", "author", "secretary", "", "-"])
def test_other_names(name):
    assert not is_secret(name)


def test_masking_leaves_the_rest_alone():
    assert mask_command(["x", "--token", "--flag", "v"]) == ["x", "--token", "--flag", "v"]
    assert mask_command(["x", "--secret=a=b", "c=d"]) == ["x", "--secret=***", "c=d"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--set=api_key=abc", "--set=api_key=***"),
        ('--logger={"api_key": "abc", "x": 1}', '--logger={"api_key": ***, "x": 1}'),
        ("https://host/path?page=2&token=abc&x=1", "https://host/path?page=2&token=***&x=1"),
        ("https://user:p@ss@host/path", "https://***@host/path"),
        ("https://host/@user", "https://host/@user"),
        ("max_tokens=5", "max_tokens=5"),
    ],
)
def test_secrets_within_an_argument(argument, expected):
    assert mask_command(["x", argument]) == ["x", expected]
    assert plain({"text": argument}) == {"text": expected}


def test_secrets_within_what_json_does_not_know():
    assert "abc" not in plain(functools.partial(print, api_key="abc"))


# ---- names and directories -------------------------------------------------------------------------------------------


def test_the_id_follows_from_code_and_command(repository):
    first = generate_exp_id(argv=["a", "b"])
    assert generate_exp_id(argv=["a", "b"]) == first
    assert generate_exp_id(argv=["ab"]) != first
    assert generate_exp_id("name", ["a", "b"]) == f"name-{first}"
    Path("code.py").write_text("a = 3\n")
    assert generate_exp_id(argv=["a", "b"]) != first
    assert len(first.split("-")[0]) == 40


def test_the_output_dir_has_that_name(repository):
    assert prepare_output_dir({}, "runs", argv=["a"]) == str(Path("runs") / generate_exp_id(argv=["a"]))
    assert prepare_output_dir({}, "runs", argv=["b"]) == str(Path("runs") / generate_exp_id(argv=["b"]))
    assert prepare_output_dir({}).endswith(generate_exp_id(argv=sys.argv))


def test_a_command_need_not_be_of_strings(outside):
    outdir = prepare_output_dir({}, argv=["a.py", Path("data"), 3, "--token", 4])
    assert Path(outdir, "command.txt").read_text() == "a.py data 3 --token '***'\n"
    assert generate_exp_id(argv=["a.py", Path("data"), 3]) == generate_exp_id(argv=["a.py", "data", "3"])


def test_without_git_it_is_named_by_the_time(outside):
    assert prepare_output_dir({}, time_format="at-%Y").startswith("at-20")


@pytest.mark.parametrize("make_backup", [True, False])
def test_an_older_directory_is_kept(outside, make_backup):
    outdir = Path(prepare_output_dir({"a": 1}, exp_id="run"))
    (outdir / "scores.txt").write_text("old")
    prepare_output_dir({"a": 2}, exp_id="run", make_backup=make_backup)
    backups = list(outside.glob("run.*.backup"))
    assert len(backups) == make_backup
    for backup in backups:
        assert json.loads((backup / "args.txt").read_text()) == {"a": 1}
        assert (backup / "scores.txt").read_text() == "old"
    assert json.loads((outdir / "args.txt").read_text()) == {"a": 2}


def test_every_older_directory_is_kept_even_where_the_time_is_coarse(outside):
    for _ in range(4):
        outdir = Path(prepare_output_dir({}, exp_id="run", time_format="day"))
        if not (outdir / "latest").is_symlink():
            (outdir / "latest").symlink_to("nowhere")
    assert {"run.day.backup", "run.day.backup-2", "run.day.backup-3"} <= names(outside)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none")
def test_an_older_directory_that_cannot_be_copied(outside):
    outdir = Path(prepare_output_dir({"a": 1}, exp_id="run"))
    os.mkfifo(outdir / "pipe")
    with pytest.raises(ConfigurationError, match=r"run could not all be copied to .*pipe.*make_backup=False"):
        prepare_output_dir({"a": 2}, exp_id="run")
    assert json.loads((outdir / "args.txt").read_text()) == {"a": 1}
    prepare_output_dir({"a": 2}, exp_id="run", make_backup=False)


def test_a_directory_that_cannot_be_written(outside):
    Path("file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file/run cannot be written.*Choose another basedir"):
        prepare_output_dir({}, "file", exp_id="run")
