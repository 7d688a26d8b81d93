"""Checkpoints on the disk: the last one, the one before, and what is done where one is damaged."""

import errno

import pytest
import torch
from factories import fail_to_read, list_names
from safetensors.torch import save

from mura_models.errors import StorageError
from mura_models.training.checksums import add_checksum, reserve_checksum
from orchestrator.run.directory import RunDir
from orchestrator.search.checkpoint_store import CheckpointStore, read_checkpoint, remove_checkpoints, write_checkpoint

TRIAL = "specialist:wrist/mlp_probe/000"


def make_content(number):
    """Return the bytes of a checkpoint."""
    return add_checksum(save({"w": torch.full((8,), float(number))}, reserve_checksum({})))


@pytest.fixture
def rundir(tmp_path):
    """A run directory with two checkpoints of one trial: the last is number 2."""
    rundir = RunDir(tmp_path)
    for number in (1, 2):
        write_checkpoint(rundir, TRIAL, make_content(number))
    return rundir


def damage(path):
    """Change a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_last_checkpoint_is_read_and_the_one_before_is_kept(rundir):
    assert read_checkpoint(rundir, TRIAL) == (make_content(2), None)
    assert rundir.previous_checkpoint(TRIAL).read_bytes() == make_content(1)
    write_checkpoint(rundir, TRIAL, make_content(3))
    assert rundir.previous_checkpoint(TRIAL).read_bytes() == make_content(2)
    assert len(list_names(rundir.checkpoints)) == 2


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(rundir):
    damage(rundir.checkpoint(TRIAL))
    content, note = read_checkpoint(rundir, TRIAL)
    assert content == make_content(1)
    assert note == "the last checkpoint is damaged: resumed from the one before"


def test_where_both_are_damaged_the_trial_starts_over_and_notes_it(rundir):
    for path in (rundir.checkpoint(TRIAL), rundir.previous_checkpoint(TRIAL)):
        damage(path)
    assert read_checkpoint(rundir, TRIAL) == (None, "the checkpoint is damaged: started from the beginning")


def test_a_writer_killed_between_two_renames_leaves_the_one_before(rundir):
    rundir.checkpoint(TRIAL).replace(rundir.previous_checkpoint(TRIAL))
    assert read_checkpoint(rundir, TRIAL) == (make_content(2), None)


def test_a_trial_without_checkpoint_has_none_and_nothing_to_say(tmp_path):
    assert read_checkpoint(RunDir(tmp_path), TRIAL) == (None, None)


def test_a_trial_takes_up_another_ones_where_it_has_none(rundir):
    store = CheckpointStore(str(rundir.root))
    assert store.load("other", TRIAL).content == make_content(2)
    store.keep("other", make_content(9))
    assert store.load("other", TRIAL).content == make_content(9)


def test_both_checkpoints_of_a_loser_go(rundir):
    remove_checkpoints(rundir, TRIAL)
    assert list_names(rundir.checkpoints) == []


def test_a_checkpoint_that_cannot_be_read_for_a_while_is_waited_for(rundir, monkeypatch):
    fail_to_read(monkeypatch, 3)
    assert read_checkpoint(rundir, TRIAL) == (make_content(2), None)


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(rundir, monkeypatch):
    """Otherwise the trial would start over and overwrite what is there."""
    store = CheckpointStore(str(rundir.root))
    store._patience_s = 0.0
    with monkeypatch.context() as patched:
        fail_to_read(patched, 1000)
        with pytest.raises(StorageError, match=r"cannot be read \(Stale file handle\)"):
            store.load(TRIAL)
    assert store.load(TRIAL) == (make_content(2), None)


def test_a_full_disk_is_said_and_the_old_checkpoint_stays(rundir, monkeypatch):
    store = CheckpointStore(str(rundir.root))
    store._patience_s = 0.0

    def refuse(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        store.keep(TRIAL, make_content(3))
    assert read_checkpoint(rundir, TRIAL) == (make_content(2), None)
