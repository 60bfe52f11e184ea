"""One of two gloo processes with a model sharded by FSDP2: loss and gradients of its proteins, to RANK.pt."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.models.alignment import compute_residue_losses
from structure_aligned.objectives.losses import combine_losses
from structure_aligned.training.compiling import trunk_layers
from tests import tiny


def main(folder, family):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = tiny.FAMILIES[family].model().double().train()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in trunk_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = {name: isinstance(parameter, DTensor) for name, parameter in model.named_parameters()}
    collator = DataCollatorForStructureAlignment(tiny.FAMILIES[family].tokenizer())
    batch = collator([tiny.row(index) for index in range(3 * rank, 3 * rank + 3)])
    batch["structure_embeddings"] = batch["structure_embeddings"].double()
    outputs = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "structure_embeddings")})
    losses = compute_residue_losses(
        outputs, batch["labels"], batch["structure_labels"], batch["residue_mask"], "global"
    )
    counts = {}
    for name, values in losses.items():
        counts[name] = torch.tensor(len(values), dtype=torch.float64)
        dist.all_reduce(counts[name])
    total, _ = combine_losses(losses, normalizers=counts)
    (total * dist.get_world_size()).backward()  # FSDP averages
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    torch.save({"total": total.detach(), "sharded": sharded, "gradients": gradients}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
