"""Checkpoints that could not be finished: a full disk, a killed process, a killed rank."""

import errno
import os
import shutil
import signal
import subprocess

import pytest
import torch

from structure_aligned.training.checkpoints import last_complete_checkpoint
from tests import tiny
from tests.training import job
from tests.training.test_processes import largest_difference, launch, launch_alone, parameters


OPTIONS = {"per_device_train_batch_size": 2, "batching": "proteins", "save_strategy": "steps", "save_steps": 4}


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, content in ((4, "{}"), (8, None), (12, '{"global'), (100, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if content is not None:
            (folder / "trainer_state.json").write_text(content)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert last_complete_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="no complete checkpoint"):
        job.run(tmp_path, resume=True, **OPTIONS)


@pytest.mark.parametrize("written", ["weights", "optimizer"])
def test_a_full_disk_says_so_and_loses_nothing(tmp_path, monkeypatch, written):
    """A writer fails at the second checkpoint; the first is complete, and the run goes on from it as if unbroken."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    job.run(tmp_path / "whole", max_steps=10, **OPTIONS)
    name = "transformers.modeling_utils.safe_save_file" if written == "weights" else "torch.save"
    module, function = name.rsplit(".", 1)
    original = getattr(__import__(module, fromlist=[function]), function)

    def write(*args, **kwargs):
        target = str(args[1])
        if "checkpoint-8" in target:
            with open(target, "wb") as file:
                file.write(b"half")
            raise full
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(name, write)
        with pytest.raises(
            OSError, match="checkpoint-8 could not be written: OSError.*No space left.*checkpoint-4 is"
        ):
            job.run(tmp_path / "full", max_steps=10, **OPTIONS)
    assert [path.name for path in (tmp_path / "full").glob("checkpoint-*")] == ["checkpoint-4"]
    job.run(tmp_path / "full", max_steps=10, resume=True, **OPTIONS)
    expected, found = parameters(tmp_path / "whole"), parameters(tmp_path / "full")
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    """A tmpfs that holds two checkpoints and not three, of another process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    job.run(tmp_path / "whole", max_steps=16, **OPTIONS)
    size = sum(file.stat().st_size for file in (tmp_path / "whole" / "checkpoint-4").iterdir())
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(2.4 * size)}", "tmpfs", str(disk)], check=False)
    if mount.returncode != 0:
        pytest.skip("mounting a tmpfs needs rights that this process has not")
    try:
        result = launch(disk, check=False, max_steps=16, **OPTIONS)
        assert result.returncode not in (0, None)
        assert "checkpoint-12 could not be written" in result.stderr, result.stderr[-2000:]
        assert "checkpoint-8 is complete" in result.stderr
        assert not (disk / "checkpoint-12").exists()
        shutil.rmtree(disk / "checkpoint-4")
        launch(disk, max_steps=16, resume=True, save_total_limit=1, **OPTIONS)
        expected, found = parameters(tmp_path / "whole"), parameters(disk)
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # the parameters are mapped


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_both_resume(tmp_path):
    options = OPTIONS | {"rows": 18, "double": True, "max_steps": 8, "latent_weight": 0.0, "save_steps": 3}
    options["per_device_train_batch_size"] = 1
    launch(tmp_path / "whole", processes=2, **options)
    results = launch_alone(tmp_path / "killed", 2, kill_at_step=5, kill_rank=1, **options)
    assert results[1][1] == -signal.SIGKILL
    # The other one does not wait for it: its connection is gone.
    assert results[0][1] not in (0, None), results[0][0][-2000:]
    assert last_complete_checkpoint(tmp_path / "killed").name == "checkpoint-3"
    launch(tmp_path / "killed", processes=2, resume=True, **options)
    start = dict(tiny.esm_model().double().named_parameters())
    assert largest_difference(parameters(tmp_path / "whole"), parameters(tmp_path / "killed"), start) < 1e-9
