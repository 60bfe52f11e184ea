"""Real processes: killed and resumed, and two of them over gloo."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.training import job


ROOT = Path(__file__).parents[2]


def launch(output, processes=1, check=True, **options):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "tests.training.job", str(output), json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if check and result.returncode != 0:
        pytest.fail(result.stderr[-3000:])
    return result


def parameters(folder):
    return load_file(Path(folder) / "parameters.safetensors")


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_killed_and_resumed_equals_uninterrupted(tmp_path, family):
    # 9 steps an epoch; killed in the second epoch, three steps after the last checkpoint, in the middle of it.
    options = {"family": family, "per_device_train_batch_size": 2, "max_steps": 16, "save_steps": 4}
    options["save_strategy"] = "steps"
    job.run(tmp_path / "whole", **options)
    killed = launch(tmp_path / "killed", check=False, kill_at_step=15, **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "killed" / "parameters.safetensors").exists()
    assert (tmp_path / "killed" / "checkpoint-12").exists()
    job.run(tmp_path / "killed", resume=True, **options)
    expected, found = parameters(tmp_path / "whole"), parameters(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_two_processes_equal_one(tmp_path, family):
    """MLM and token task: the same proteins a step, once in two micro-batches and once on two ranks."""
    options = {
        "family": family,
        "rows": 16,
        "double": True,
        "latent_weight": 0.0,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.05,
        "head_learning_rate": 0.05,
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        # five proteins on two ranks: the last batch repeats one, which must not count twice
        "per_device_eval_batch_size": 1,
    }
    job.run(tmp_path / "one", gradient_accumulation_steps=2, **options)
    launch(tmp_path / "two", processes=2, **options)
    expected, found = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    start = dict(tiny.FAMILIES[family].model().double().named_parameters())
    moved = 0
    for name, value in expected.items():
        step = (value - start[name]).abs().max()
        moved += step > 0
        assert (value - found[name]).abs().max() <= 1e-10 * step + 1e-15, name
    assert moved > 20
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    for key in ("eval_mlm_loss", "eval_token_loss", "eval_token_accuracy", "eval_retrieval_at_1"):
        assert metrics[1][key] == pytest.approx(metrics[0][key], rel=1e-9), key


@pytest.mark.parametrize("scope", ["global", pytest.param("batch", marks=pytest.mark.slow)])
def test_global_selection_of_two_processes_equals_one_on_the_concatenation(tmp_path, scope):
    """Token task alone: its losses do not depend on the other rank. By batch, each rank keeps its own fraction."""
    options = {
        "rows": 16,
        "double": True,
        "reference": True,
        "mlm_weight": 0.0,
        "latent_weight": 0.0,
        "selection_ratio": 0.3,
        "selection_scope": scope,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.05,
        "head_learning_rate": 0.05,
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
    }
    job.run(tmp_path / "one", per_device_train_batch_size=8, **options)
    launch(tmp_path / "two", processes=2, per_device_train_batch_size=4, **options)
    expected, found = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    start = dict(tiny.esm_model().double().named_parameters())
    difference = max(
        ((value - found[name]).abs().max() / (value - start[name]).abs().max().clamp(min=1e-12)).item()
        for name, value in expected.items()
    )
    assert difference < 1e-9 if scope == "global" else difference > 1e-3


def test_a_rank_without_structures_selects_with_the_others(tmp_path):
    launch(
        tmp_path / "empty",
        processes=2,
        rows=8,
        without_structure=list(range(0, 8, 2)),
        reference=True,
        selection_scope="global",
        per_device_train_batch_size=1,
        max_steps=3,
        save_strategy="no",
    )
    assert all(value.isfinite().all() for value in parameters(tmp_path / "empty").values())


def test_a_rank_without_structures_does_not_stop_the_others(tmp_path):
    launch(
        tmp_path / "empty",
        processes=2,
        rows=8,
        without_structure=list(range(8)),
        per_device_train_batch_size=1,
        max_steps=2,
        save_strategy="no",
    )
    assert all(value.isfinite().all() for value in parameters(tmp_path / "empty").values())
