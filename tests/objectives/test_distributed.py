"""Uneven values of two gloo processes, and selection over both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from structure_aligned.objectives.distributed import gather_uneven, is_distributed
from structure_aligned.objectives.selection import select_residues


ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, torch, torch.distributed as dist
from structure_aligned.objectives.distributed import gather_uneven, is_distributed
from structure_aligned.objectives.selection import select_residues
dist.init_process_group("gloo")
rank = dist.get_rank()
assert is_distributed()
results = {}
for case, (current, reference, sizes) in torch.load(sys.argv[1] + "/cases.pt", weights_only=True).items():
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    gathered, start = gather_uneven(current[own])
    assert torch.equal(gathered, current) and start == own.start, case
    for keep in ("largest", "smallest"):
        for ratio in (0.01, 0.5, 0.8):
            kept = select_residues(current[own], reference[own], ratio, keep, scope="global")
            results[f"{case}/{keep}/{ratio}"] = kept
wide = torch.full((rank + 1, 3), float(rank))
assert gather_uneven(wide)[0].tolist() == [[0.0] * 3] + [[1.0] * 3] * 2
torch.save(results, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


def test_alone_there_is_nothing_to_gather():
    values = torch.arange(3.0)
    assert not is_distributed()
    assert gather_uneven(values) == (values, 0)


def test_two_processes_select_as_one_on_the_concatenation(tmp_path):
    """Uneven numbers, an empty rank, ties across the ranks; every mask is the one process's, cut in two."""
    generator = torch.Generator().manual_seed(0)
    cases = {}
    for case, sizes in {"uneven": (37, 80), "empty": (0, 50), "other empty": (50, 0), "none": (0, 0)}.items():
        cases[case] = (*torch.rand(2, sum(sizes), generator=generator), sizes)
    cases["ties"] = (torch.ones(40), torch.zeros(40), (15, 25))
    torch.save(cases, tmp_path / "cases.pt")
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    if result.returncode != 0:
        pytest.fail(result.stderr[-3000:])
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ranks[0]:
        case, keep, ratio = name.split("/")
        current, reference, _ = cases[case]
        expected = select_residues(current, reference, float(ratio), keep)
        assert torch.equal(torch.cat([rank[name] for rank in ranks]), expected), name
