"""One of several gloo processes: losses and gradients of its share of some residues, to RANK.pt in a folder."""

import sys

import torch
import torch.distributed as dist

from structure_aligned.objectives.negatives import residue_losses_among


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    results = {}
    for name, case in torch.load(f"{folder}/cases.pt", weights_only=True).items():
        start, count = sum(case["sizes"][:rank]), case["sizes"][rank]
        own = slice(start, start + count)
        sequence, structure = (case[side][own].clone().requires_grad_() for side in ("sequence", "structure"))
        scale = case["scale"].clone().requires_grad_()
        losses = residue_losses_among(
            sequence, structure, scale, "global", backend=case["backend"], chunk_size=case["chunk_size"]
        )
        total = sum((loss * weight[own]).sum() for loss, weight in zip(losses, case["weights"]))
        total.backward()
        results[name] = {
            "to_structure": losses[0].detach(),
            "to_sequence": losses[1].detach(),
            "sequence": sequence.grad,
            "structure": structure.grad,
            "scale": scale.grad,
        }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
