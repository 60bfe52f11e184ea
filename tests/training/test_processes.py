"""Real processes: killed and resumed, and two of them over gloo."""

import json
import os
import re
import signal
import socket
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


def launch_alone(output, processes, **options):
    """The processes without an agent that would end them all when one fails: each must end by itself."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost"}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        command = [sys.executable, "-m", "tests.training.job", str(output), json.dumps(options)]
        environment |= {"MASTER_PORT": str(port)}
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        return [(process.communicate(timeout=200)[1], process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()


def largest_difference(expected, found, start):
    """Of two runs' parameters, relative to what training changed: the worst of all tensors."""
    return max(
        ((value - found[name]).abs().max() / (value - start[name]).abs().max().clamp(min=1e-12)).item()
        for name, value in expected.items()
    )


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


@pytest.mark.parametrize("family", ["esm", pytest.param("AMPLIFY", marks=pytest.mark.slow)])
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


def test_a_stream_on_two_processes_equals_one(tmp_path):
    """Each process takes every second row: the same proteins a step, over three epochs."""
    options = {"rows": 16, "latent_weight": 0.0, "batching": "proteins", "max_steps": 6, "stream": 1} | PLAIN_STEPS
    job.run(tmp_path / "one", per_device_train_batch_size=8, **options)
    launch(tmp_path / "two", processes=2, per_device_train_batch_size=4, **options)
    start = dict(tiny.esm_model().double().named_parameters())
    assert largest_difference(parameters(tmp_path / "one"), parameters(tmp_path / "two"), start) < 1e-9


def test_shards_of_a_stream_that_are_not_equally_long_stop_nobody(tmp_path):
    """Three and two rows, of which each process reads its own again and again."""
    options = {"rows": 5, "batching": "proteins", "max_steps": 5, "stream": 2, "gradient_accumulation_steps": 2}
    launch(tmp_path, processes=2, per_device_train_batch_size=1, **PLAIN_STEPS, **options)
    assert all(value.isfinite().all() for value in parameters(tmp_path).values())


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
    difference = largest_difference(expected, found, start)
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


PLAIN_STEPS = {
    "double": True,
    "optim": "sgd",
    "learning_rate": 0.05,
    "head_learning_rate": 0.05,
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
    "save_strategy": "no",
}


@pytest.mark.parametrize(
    "case",
    [
        {"family": "esm", "selection_ratio": 0.5, "selection_scope": "global", "reference": True},
        # Every second protein: those of one rank. Its residues are none, and it waits for nobody.
        pytest.param({"family": "AMPLIFY", "without_structure": list(range(0, 16, 2))}, marks=pytest.mark.slow),
    ],
    ids=["selection and accumulation", "uneven and empty"],
)
def test_negatives_of_two_processes_equal_one_on_the_concatenation(tmp_path, case):
    """All tasks, selection over both ranks, two accumulated micro-batches: the same step as one process's."""
    options = {"rows": 16, "batching": "proteins", "max_steps": 2, "gradient_accumulation_steps": 2} | case
    job.run(tmp_path / "one", per_device_train_batch_size=4, **PLAIN_STEPS, **options)
    launch(tmp_path / "two", processes=2, per_device_train_batch_size=2, negatives="global", **PLAIN_STEPS, **options)
    start = dict(tiny.FAMILIES[case["family"]].model().double().named_parameters())
    assert largest_difference(parameters(tmp_path / "one"), parameters(tmp_path / "two"), start) < 1e-9


@pytest.mark.slow
def test_own_negatives_of_two_processes_are_another_loss(tmp_path):
    """The test above can fail."""
    options = {"rows": 16, "batching": "proteins", "max_steps": 1} | PLAIN_STEPS
    job.run(tmp_path / "one", per_device_train_batch_size=4, **options)
    launch(tmp_path / "two", processes=2, per_device_train_batch_size=2, **options)
    start = dict(tiny.esm_model().double().named_parameters())
    assert largest_difference(parameters(tmp_path / "one"), parameters(tmp_path / "two"), start) > 1e-3


def test_a_batch_that_cannot_be_loaded_ends_all_ranks(tmp_path):
    results = launch_alone(tmp_path, 2, rows=8, batching="proteins", per_device_train_batch_size=1, broken_row=3)
    errors = [stderr.strip().splitlines()[-1] for stderr, _ in results]
    assert all(code not in (0, None) and code > 0 for _, code in results), results
    own = [error for error in errors if error.endswith("]: ValueError: row3_A is damaged")]
    other = [error for error in errors if "another could not load its batch" in error]
    assert len(own) == len(other) == 1, errors
    assert "ValueError: row3_A is damaged" in other[0]


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(tmp_path):
    options = {"batching": "proteins", "per_device_train_batch_size": 1, "max_steps": 6, "save_steps": 2}
    options |= {"save_strategy": "steps", "logging_steps": 2}
    results = launch_alone(tmp_path, 2, rows=8, spoilt_rank=1, **options)
    assert all(code is not None and code > 0 for _, code in results), results
    for stderr, _ in results:
        # The other rank sees it in the averaged gradient too, and names both.
        assert re.search(r"NonFiniteError: .*The loss of step 3 is not finite, in the batch of row\d_A", stderr), (
            stderr
        )
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_ranks_with_other_options_and_data_all_end_with_that_message(tmp_path):
    """Otherwise one of them waits for steps that the other one never takes."""
    options = {"rows": 8, "batching": "proteins", "per_device_train_batch_size": 1, "max_steps": 40}
    results = launch_alone(tmp_path, 2, rank_1={"rows": 6, "gradient_accumulation_steps": 2}, **options)
    for stderr, code in results:
        assert code not in (0, None) and code > 0, results
        assert "ValueError: The ranks of this training were given different options or data: " in stderr
        assert "gradient_accumulation_steps is 1 on rank 0 and 2 on rank 1" in stderr
        assert "train_dataset.rows is 8 on rank 0 and 6 on rank 1" in stderr


@pytest.mark.parametrize("batching", ["tokens", pytest.param("packed", marks=pytest.mark.slow)])
def test_resume_crosses_from_one_to_two_processes(tmp_path, batching):
    """One process with two accumulation steps, killed, goes on as two with one: as if nothing had happened."""
    options = {"rows": 18, "double": True, "tokens_per_batch": 100, "max_steps": 12, "batching": batching}
    options |= {"save_strategy": "steps", "save_steps": 4, "latent_weight": 0.0}
    job.run(tmp_path / "whole", gradient_accumulation_steps=2, **options)
    killed = launch(tmp_path / "crossed", check=False, kill_at_step=6, gradient_accumulation_steps=2, **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    launch(tmp_path / "crossed", processes=2, resume=True, gradient_accumulation_steps=1, **options)
    start = dict(tiny.esm_model().double().named_parameters())
    assert largest_difference(parameters(tmp_path / "whole"), parameters(tmp_path / "crossed"), start) < 1e-8
