"""The run directory: whole files or none, a journal that survives its writer, one driver at a time."""

import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from factories import list_names

from mura_models.errors import ConfigError
from mura_models.storage import atomic_directory, atomic_write
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json, to_plain, write_json, write_table
from orchestrator.run.journal import JournalWriter, last_lines, read_journal, to_table
from orchestrator.run.provenance import check_finished

WEIRD_BONES = ["../../etc", "a/b", "été", "手", "with space", "..", ".", "a%2Fb", "C:\\x", "", "x" * 100, "手" * 30]

HOLD_LOCK = """
import sys
from pathlib import Path
from orchestrator.run.directory import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def write_line(journal, trial="baseline/mlp_probe/000", epoch=1, state="RUNNING", **metrics):
    """Append one line."""
    return journal.append(
        search=trial.rsplit("/", 1)[0],
        trial=trial,
        epoch=epoch,
        metrics=metrics,
        state=state,
    )


@pytest.fixture
def journal(tmp_path):
    """An empty journal."""
    return JournalWriter(tmp_path / "journal.jsonl")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "selected.json"
    write_json(path, {"a": 1})

    def fail_half_way():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_half_way()
    assert read_json(path) == {"a": 1}
    assert list_names(tmp_path) == ["selected.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "bundle"
    with atomic_directory(path) as partial:
        (partial / "old").write_text("1")

    def fail_half_way():
        with atomic_directory(path) as partial:
            (partial / "new").write_text("2")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_half_way()
    assert list_names(path) == ["old"]
    with atomic_directory(path) as partial:
        (partial / "new").write_text("2")
    assert list_names(path) == ["new"]
    assert list_names(tmp_path) == ["bundle"]


@pytest.fixture
def set_umask():
    """Set this process's umask for the length of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(folder):
    """Return the permissions of a report and a bundle."""
    return tuple((folder / name).stat().st_mode & 0o7777 for name in ("report.json", "bundle"))


def write_both(folder):
    write_json(folder / "report.json", {})
    with atomic_directory(folder / "bundle"):
        pass


@pytest.mark.parametrize(
    ("umask", "expected"), [(0o022, (0o644, 0o755)), (0o077, (0o600, 0o700)), (0o002, (0o664, 0o775))]
)
def test_who_may_read_what_is_written_is_for_the_users_umask_to_say(tmp_path, set_umask, umask, expected):
    set_umask(umask)
    write_both(tmp_path)
    assert modes(tmp_path) == expected


def test_what_is_replaced_keeps_its_permissions(tmp_path, set_umask):
    write_both(tmp_path)
    for mode_of_file, mode_of_folder in ((0o600, 0o700), (0o640, 0o2750)):
        (tmp_path / "report.json").chmod(mode_of_file)
        (tmp_path / "bundle").chmod(mode_of_folder)
        write_both(tmp_path)
        assert modes(tmp_path) == (mode_of_file, mode_of_folder)


def test_what_replaces_a_private_file_is_private_from_the_first_byte(tmp_path, set_umask):
    (tmp_path / "report.json").touch(0o600)
    (tmp_path / "bundle").mkdir(0o700)
    with atomic_write(tmp_path / "report.json") as file, atomic_directory(tmp_path / "bundle") as folder:
        assert file.stat().st_mode & 0o077 == 0
        assert folder.stat().st_mode & 0o077 == 0


def test_json_holds_no_nan_and_no_numpy(tmp_path):
    content = {"a": np.float32(0.5), "b": [math.nan, np.inf, np.int64(3)], 4: {"c": (np.bool_(True), None, "手")}}
    write_json(tmp_path / "x.json", content)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == {"a": 0.5, "b": [None, None, 3], "4": {"c": [True, None, "手"]}} == to_plain(content)


@pytest.mark.parametrize("name", ["plan.csv", "trials.parquet"])
def test_tables_come_back_as_they_were(tmp_path, name):
    table = pd.DataFrame({"trial": ["é/000", "b"], "lr": [1e-4, 0.1], "epoch": [1, 2]})
    write_table(tmp_path / name, table)
    read = pd.read_csv(tmp_path / name) if name.endswith("csv") else pd.read_parquet(tmp_path / name)
    pd.testing.assert_frame_equal(read, table)


def test_a_journal_comes_back_as_it_was_written(journal):
    written = [write_line(journal, epoch=epoch, dev_auroc=epoch / 3) for epoch in (1, 2)]
    assert read_journal(journal.path) == written == journal.lines
    read = JournalWriter(journal.path)
    assert [line.seq for line in read.lines] == [1, 2]
    assert read.has("baseline/mlp_probe/000", 2)
    assert not read.has("baseline/mlp_probe/000", 3)


def test_a_line_is_on_the_disk_before_the_next(journal):
    for epoch in (1, 2, 3):
        write_line(journal, epoch=epoch)
        assert len(read_journal(journal.path)) == epoch


@pytest.mark.parametrize("torn", ['{"seq": 2, "trial": "x", "ep', '{"s', '{"trial": "été'])
def test_a_last_line_cut_short_is_dropped_and_written_again(journal, torn):
    write_line(journal, epoch=1)
    with journal.path.open("ab") as handle:
        handle.write(torn.encode()[:-1])
    torn_content = journal.path.read_bytes()
    assert len(read_journal(journal.path)) == 1
    assert journal.path.read_bytes() == torn_content  # a reader writes nothing
    resumed = JournalWriter(journal.path)
    assert len(resumed.lines) == 1
    write_line(resumed, epoch=2)
    assert [line.epoch for line in read_journal(journal.path)] == [1, 2]


def test_a_torn_first_line_leaves_an_empty_journal(journal):
    journal.path.write_text('{"seq": 1')
    assert read_journal(journal.path) == []
    assert JournalWriter(journal.path).lines == []
    assert journal.path.read_text() == ""


def test_what_is_not_finite_is_null_in_the_journal(journal):
    write_line(journal, dev_loss=math.nan, train_loss=math.inf)
    assert read_journal(journal.path)[0].metrics == {"dev_loss": None, "train_loss": None}


def test_names_with_line_breaks_stay_one_line(journal):
    trial = "specialist:a\nb\r\u2028\x85c/mlp_probe/000"
    write_line(journal, trial=trial)
    assert read_journal(journal.path)[0].trial == trial


def test_only_trials_that_ended_have_a_final_state(journal):
    write_line(journal, trial="a/x/000", epoch=1)
    write_line(journal, trial="a/x/001", epoch=1, state="PRUNED")
    write_line(journal, trial="a/x/000", epoch=2, state="COMPLETE")
    write_line(journal, trial="a/x/002", epoch=1)
    states = {trial: (line.state, line.epoch) for trial, line in last_lines(journal.lines).items()}
    assert states == {"a/x/000": ("COMPLETE", 2), "a/x/001": ("PRUNED", 1)}


def test_the_table_of_trials_has_a_row_an_epoch_sorted(journal):
    write_line(journal, trial="b/x/000", epoch=1, dev_auroc=0.5)
    write_line(journal, trial="a/x/001", epoch=2, state="COMPLETE", dev_auroc=0.6)
    write_line(journal, trial="a/x/001", epoch=1, dev_auroc=0.7)
    table = to_table(journal.lines)
    assert table["trial"].tolist() == ["a/x/001", "a/x/001", "b/x/000"]
    assert table["dev_auroc"].tolist() == [0.7, 0.6, 0.5]
    assert table["state"].tolist() == ["RUNNING", "COMPLETE", "RUNNING"]
    assert len(to_table(read_journal(journal.path.with_name("none.jsonl")))) == 0


@pytest.mark.parametrize("bone", WEIRD_BONES, ids=range(len(WEIRD_BONES)))
def test_any_bone_can_name_a_checkpoint(tmp_path, bone):
    rundir = RunDir(tmp_path / "run")
    path = rundir.checkpoint(f"specialist:{bone}/mlp_probe/000")
    with atomic_write(path) as partial:
        partial.write_bytes(b"weights")
    assert path.resolve().parent == (tmp_path / "run" / "checkpoints").resolve()
    assert list_names(tmp_path / "run") == ["checkpoints"]


def test_no_two_trials_share_a_checkpoint(tmp_path):
    trials = [f"specialist:{bone}/mlp_probe/{number:03d}" for bone in WEIRD_BONES for number in (0, 1)]
    assert len({RunDir(tmp_path).checkpoint(trial) for trial in trials}) == len(trials)


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path):
    rundir = RunDir(tmp_path / "run")
    command = [sys.executable, "-c", HOLD_LOCK, str(rundir.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another run is writing here; wait for it"), rundir.lock():
            pass
        other.kill()  # not a clean end: the lock goes with its process
        other.wait(10)
        with rundir.lock():
            pass


def test_a_lock_is_given_back(tmp_path):
    for _ in range(2):
        with RunDir(tmp_path).lock():
            pass


def test_a_link_in_place_of_the_lock_is_refused_and_its_target_kept(tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(target)
    with pytest.raises(ConfigError, match=r"run: cannot be written to"), RunDir(tmp_path / "run").lock():
        pass
    assert target.read_text() == "mine"


def test_a_run_directory_that_is_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="taken"), RunDir(tmp_path / "taken").lock():
        pass


def test_a_disk_without_locks_is_said_in_one_line(tmp_path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ConfigError, match=r"its disk has no locks \(Function"), RunDir(tmp_path).lock():
        pass


def test_what_a_killed_driver_began_goes_and_nothing_of_anybody_elses(tmp_path):
    rundir = RunDir(tmp_path)
    mine = [tmp_path / ".run.json.abc.part", rundir.checkpoints / ".baseline.abc.part"]
    others = [tmp_path / "other-run" / ".run.json.abc.part", tmp_path / "plan.csv"]
    for path in (*mine, *others):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    rundir.remove_unfinished()
    assert [path.exists() for path in (*mine, *others)] == [False, False, True, True]


def test_a_finished_run_that_lost_a_table_is_named_in_one_line(tmp_path):
    rundir = RunDir(tmp_path)
    for path in (rundir.report_json, rundir.selected, rundir.exploration):
        write_json(path, {})
    write_table(rundir.trials, pd.DataFrame({"trial": ["a"]}))
    with pytest.raises(ConfigError, match=r"has no predictions\.parquet; run it again"):
        check_finished(rundir)
