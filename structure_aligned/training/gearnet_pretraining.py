"""
Self-supervised pre-training of GearNet on structures without labels, where no pre-trained one can be had.

Two of the objectives of Zhang et al., *Protein Representation Learning by Geometric Structure Pretraining*, ICLR 2023
(arXiv:2203.06125): `"prediction"`, hidden residue types, distances of residues and dihedrals of the CA trace, all
three at once; and `"contrast"`, the multiview contrast of two parts of a protein.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..models.gearnet import GearNetModel
from ..structure.chain import ProteinChain
from ..structure.graph import RESIDUE_LETTERS, UNKNOWN_RESIDUE, ResidueGraph
from ..utils.numbers import check_options


OBJECTIVES = ("prediction", "contrast")

DISTANCE_BINS = torch.arange(4.0, 21.0)
"""Upper ends of the distance classes but the last, in Å."""

_STATE = "state.pt"

DIHEDRAL_CLASSES = 12
TEMPERATURE = 0.07
CROP_RESIDUES, CROP_RADIUS = 50, 15.0
"""Size of a view: so many consecutive residues, or all within so many Å of one."""


class GearNetPretraining(nn.Module):
    """
    A GearNet with the heads of one objective. The heads are thrown away afterwards.

    Args:
        gearnet ([`GearNetModel`]): Trained in place. Where it does not see residue types
            (`config.use_residue_types`), all of them are hidden and predicted, not only some.
        objective (`str`): `"prediction"` or `"contrast"`.
        mask_fraction (`float`, *optional*, defaults to 0.15): Residues whose type is hidden; and for `"prediction"`,
            pairs whose distance is asked for, per residue.
    """

    def __init__(self, gearnet: GearNetModel, objective: str = "prediction", mask_fraction: float = 0.15) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}.")
        if not 0 < mask_fraction <= 1:
            raise ValueError(f"mask_fraction is {mask_fraction}; expected 0 < fraction <= 1.")
        self.gearnet, self.objective, self.mask_fraction = gearnet, objective, mask_fraction
        width = sum(gearnet.config.hidden_dims)
        if objective == "contrast":
            self.projection = _mlp(width, width, width)
        else:
            self.types = _mlp(width, width, len(RESIDUE_LETTERS))
            self.distances = _mlp(2 * width, width, len(DISTANCE_BINS) + 1)
            self.dihedrals = _mlp(4 * width, width, DIHEDRAL_CLASSES)

    def forward(self, graphs: Sequence[ResidueGraph], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """
        Losses of some chains, scalars by name.

        Args:
            graphs (`list[ResidueGraph]`): One per chain.
            generator (`torch.Generator`): Of what is hidden, asked for and cropped.
        """
        if self.objective == "contrast":
            return {"contrast": self._contrast(graphs, generator)}
        return self._predict(ResidueGraph.pack(graphs), generator)

    def _hidden(self, graph: ResidueGraph, types: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        output = self.gearnet(graph.ca, types, edges, output_hidden_states=True, return_dict=True)
        return torch.cat(output.hidden_states, dim=1)

    def _mask(self, types: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if not self.gearnet.config.use_residue_types:
            return torch.ones_like(types, dtype=torch.bool)
        return torch.rand(len(types), generator=generator) < self.mask_fraction

    def _predict(self, graph: ResidueGraph, generator: torch.Generator) -> dict[str, torch.Tensor]:
        masked = self._mask(graph.residue_types, generator)
        first, second = _draw_pairs(graph, self.mask_fraction, generator)
        edges = _without_pairs(graph.edges, first, second, len(graph.ca))
        hidden = self._hidden(graph, graph.residue_types.masked_fill(masked, UNKNOWN_RESIDUE), edges)

        asked = masked & (graph.residue_types != UNKNOWN_RESIDUE)
        losses = {"type": _cross_entropy(self.types(hidden[asked]), graph.residue_types[asked])}
        distance = torch.linalg.vector_norm(graph.ca[first] - graph.ca[second], dim=1)
        pairs = torch.cat([hidden[first] * hidden[second], (hidden[first] - hidden[second]).abs()], dim=1)
        losses["distance"] = _cross_entropy(self.distances(pairs), torch.bucketize(distance, DISTANCE_BINS))
        starts = _runs_of_four(graph)
        angles = dihedrals(*(graph.ca[starts + step] for step in range(4)))
        classes = ((angles / (2 * math.pi) + 0.5) * DIHEDRAL_CLASSES).long().clamp(0, DIHEDRAL_CLASSES - 1)
        trace = torch.cat([hidden[starts + step] for step in range(4)], dim=1)
        losses["dihedral"] = _cross_entropy(self.dihedrals(trace), classes)
        return losses

    def _contrast(self, graphs: Sequence[ResidueGraph], generator: torch.Generator) -> torch.Tensor:
        views = []
        for _ in range(2):
            view = ResidueGraph.pack([self._view(graph, generator) for graph in graphs])
            types = view.residue_types.masked_fill(self._mask(view.residue_types, generator), UNKNOWN_RESIDUE)
            hidden = self._hidden(view, types, view.edges)
            pooled = hidden.new_zeros(len(graphs), hidden.shape[1]).index_add(0, view.node_to_graph, hidden)
            views.append(F.normalize(self.projection(pooled), dim=1))
        similarities = views[0] @ views[1].T / TEMPERATURE
        labels = torch.arange(len(graphs))
        return (F.cross_entropy(similarities, labels) + F.cross_entropy(similarities.T, labels)) / 2

    def _view(self, graph: ResidueGraph, generator: torch.Generator) -> ResidueGraph:
        """A stretch of the chain, or the surroundings of a residue, with the edges inside."""
        size = len(graph.ca)
        centre, ball = (int(torch.randint(limit, (), generator=generator)) for limit in (size, 2))
        if ball:
            keep = torch.linalg.vector_norm(graph.ca - graph.ca[centre], dim=1) < CROP_RADIUS
        else:
            start = int(torch.randint(max(1, size - CROP_RESIDUES + 1), (), generator=generator))
            keep = torch.zeros(size, dtype=torch.bool)
            keep[start : start + CROP_RESIDUES] = True
        place = keep.cumsum(0) - 1
        source, target, relation = graph.edges[keep[graph.edges[:, 0]] & keep[graph.edges[:, 1]]].unbind(1)
        edges = torch.stack([place[source], place[target], relation], dim=1)
        return ResidueGraph(graph.ca[keep], graph.residue_types[keep], edges, (int(keep.sum()),))


def pretrain_gearnet(
    gearnet: GearNetModel,
    chains: Sequence[ProteinChain],
    objective: str = "prediction",
    *,
    epochs: float = 5,
    learning_rate: float = 2e-3,
    residues_per_batch: int = 2048,
    mask_fraction: float = 0.15,
    seed: int = 0,
    progress: bool = True,
    output_dir: str | Path | None = None,
    save_steps: int = 500,
    resume_from_checkpoint: str | Path | None = None,
) -> list[dict[str, float]]:
    """
    Trains a GearNet in place on chains without labels: AdamW, a linear warm-up and a cosine to 0.

    Args:
        chains (`list[ProteinChain]`): Residues without CA are left out, chains of fewer than 8 as a whole.
        objective (`str`, *optional*, defaults to `"prediction"`): Or `"contrast"`; its views of 50 residues cost less,
            so its batches hold the more chains.
        epochs (`float`, *optional*, defaults to 5): Passes over the chains.
        residues_per_batch (`int`, *optional*, defaults to 2048): At most, of all chains of a batch (all views).
        mask_fraction (`float`, *optional*, defaults to 0.15): See [`GearNetPretraining`].
        seed (`int`, *optional*, defaults to 0): Of order, masks, pairs and crops, and of the heads' weights.
        output_dir (`str` or `Path`, *optional*): Where a checkpoint is written after every `save_steps` steps, in the
            place of the one before.
        resume_from_checkpoint (`str` or `Path`, *optional*): A checkpoint of the same options and chains; the result
            is that of an uninterrupted run.

    Returns:
        `list[dict[str, float]]`: Mean losses by name of each tenth of the steps, with the `step` it ends at.
    """
    check_options({"epochs": epochs, "learning_rate": learning_rate, "mask_fraction": mask_fraction})
    graphs = _graphs(chains, gearnet)
    if not graphs:
        raise ValueError(f"None of {len(chains)} chains has 8 residues with CA; there is nothing to train on.")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task = GearNetPretraining(gearnet, objective, mask_fraction).train()
    optimizer = torch.optim.AdamW(task.parameters(), learning_rate, weight_decay=0.01)
    cost = [2 * min(len(graph.ca), CROP_RESIDUES) if objective == "contrast" else len(graph.ca) for graph in graphs]
    total = max(
        1, round(epochs * sum(1 for _ in _batches(cost, residues_per_batch, torch.Generator().manual_seed(0))))
    )
    warmup = max(1, total // 20)

    def rate(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    run = _Run(task, optimizer, schedule, generator)
    facts = {"objective": objective, "total": total, "mask_fraction": mask_fraction, "seed": seed, "costs": cost}
    facts |= {"learning_rate": learning_rate, "widths": [[*part.shape] for part in task.parameters()]}
    if resume_from_checkpoint is not None:
        run.load(Path(resume_from_checkpoint), facts)
    history, sums, count = run.history, run.sums, run.count
    steps = range(run.step + 1, total + 1)
    bar = tqdm(steps, desc=f"GearNet, {objective}", initial=run.step, total=total, disable=not progress)
    for step in bar:
        run.pending = run.pending or list(_batches(cost, residues_per_batch, generator))
        losses = task([graphs[index] for index in run.pending.pop(0)], generator)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        sums = {name: sums.get(name, 0.0) + loss.item() for name, loss in losses.items()}
        if not all(map(math.isfinite, sums.values())):
            raise ValueError(
                f"A loss of step {step} is not finite ({sums}); lower the learning rate, or look for odd chains."
            )
        count += 1
        if step % max(1, total // 10) == 0 or step == total:
            history.append({"step": step} | {name: value / count for name, value in sums.items()})
            bar.set_postfix({name: f"{value / count:.3f}" for name, value in sums.items()})
            sums, count = {}, 0
        if output_dir is not None and step % save_steps == 0 and step < total:
            run.step, run.sums, run.count = step, sums, count
            run.save(Path(output_dir), facts)
    gearnet.eval()
    return history


@dataclass
class _Run:
    """What a training needs to go on as if it had never been interrupted."""

    task: GearNetPretraining
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    generator: torch.Generator
    step: int = 0
    pending: list[list[int]] = field(default_factory=list)
    """Batches of the epoch that are still to come."""
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """A checkpoint in the place of earlier ones; its state file comes last and makes it complete."""
        path = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.step}"
        earlier = [other for other in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if other != path]
        path.mkdir(parents=True, exist_ok=True)
        parts = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        torch.save({"task": self.task.state_dict(), **parts, "generator": self.generator.get_state()}, path / _STATE)
        names = ("step", "pending", "history", "sums", "count")
        state = {name: getattr(self, name) for name in names} | {"facts": facts}
        (path / TRAINER_STATE_NAME).write_text(json.dumps(state))
        for other in earlier:
            shutil.rmtree(other)

    def load(self, path: Path, facts: dict[str, Any]) -> None:
        try:
            state = json.loads((path / TRAINER_STATE_NAME).read_text())
            stored = torch.load(path / _STATE, weights_only=True)
            different = [name for name in facts if state["facts"][name] != facts[name]]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path} is not a complete checkpoint of this pre-training ({type(error).__name__}: {error})."
            ) from error
        if different:
            raise ValueError(
                f"The checkpoint {path} was written by a training with other chains or options: "
                f"{', '.join(different)} differ. Resume with the same ones, or start from the beginning."
            )
        self.task.load_state_dict(stored["task"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.schedule.load_state_dict(stored["schedule"])
        self.generator.set_state(stored["generator"])
        for name in ("step", "pending", "history", "sums", "count"):
            setattr(self, name, state[name])


def dihedrals(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Dihedral angles of shape `(N,)`, −π … π, of four points of shape `(N, 3)` each; positive as in IUPAC's rule."""
    first, axis, last = b - a, c - b, d - c
    normal, other = torch.cross(first, axis, dim=1), torch.cross(axis, last, dim=1)
    side = torch.cross(normal, other, dim=1)
    return torch.atan2((side * F.normalize(axis, dim=1)).sum(1), (normal * other).sum(1))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # Nothing asked for is no loss, but keeps the gradient's path, so that an optimizer finds what it expects.
    return F.cross_entropy(logits, labels) if len(labels) else logits.sum() * 0.0


def _graphs(chains: Sequence[ProteinChain], gearnet: GearNetModel) -> list[ResidueGraph]:
    graphs = []
    for chain in chains:
        ca = torch.from_numpy(chain.ca)
        present = torch.isfinite(ca).all(dim=1)
        if present.sum() >= 8:
            letters = "".join(letter for letter, here in zip(chain.sequence, present.tolist()) if here)
            graphs.append(ResidueGraph.from_chain(ca[present], letters, **gearnet.config.graph_options))
    return graphs


def _batches(cost: Sequence[int], budget: int, generator: torch.Generator) -> Iterator[list[int]]:
    batch, used = [], 0
    for index in torch.randperm(len(cost), generator=generator).tolist():
        if batch and used + cost[index] > budget:
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += cost[index]
    yield batch


def _draw_pairs(graph: ResidueGraph, fraction: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """As many pairs as `fraction` of the residues, half of them near in space, half any two of a chain."""
    count = max(1, int(fraction * len(graph.ca) / 2))
    near = graph.edges[(graph.edges[:, 0] - graph.edges[:, 1]).abs() >= 5]
    near = near[torch.randint(max(1, len(near)), (min(count, len(near)),), generator=generator)]
    lengths = torch.tensor(graph.lengths)
    begins = lengths.cumsum(0) - lengths
    anchor = torch.randint(len(graph.ca), (count,), generator=generator)
    of = graph.node_to_graph[anchor]
    partner = begins[of] + (torch.rand(count, generator=generator) * lengths[of]).long()
    apart = (anchor - partner).abs() >= 5
    return torch.cat([near[:, 0], anchor[apart]]), torch.cat([near[:, 1], partner[apart]])


def _without_pairs(edges: torch.Tensor, first: torch.Tensor, second: torch.Tensor, size: int) -> torch.Tensor:
    """Edges but those between the residues of a pair, in either direction: their feature is the distance asked for."""
    asked = torch.cat([first * size + second, second * size + first])
    return edges[~torch.isin(edges[:, 0] * size + edges[:, 1], asked)]


def _runs_of_four(graph: ResidueGraph) -> torch.Tensor:
    of = graph.node_to_graph
    starts = torch.arange(max(0, len(graph.ca) - 3))
    return starts[of[starts] == of[starts + 3]]
