"""
How many contacts can a model's attention learn from these chains when it is asked for them? A mark for alignment.

All weights of the model are trained on the contacts themselves, which alignment never sees: a logistic regression on
its symmetrised, APC-corrected attention maps, the one that the evaluation fits, trained together with the model. What
`examples/evaluate.py` then measures of the saved model can be had of these chains and this base; what alignment falls
short of it is not their fault.

    python benchmarks/contact_ceiling.py --model outputs/base --structures data/structures/train \
        --exclude outputs/report/report.json --output outputs/ceiling
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, get_scheduler, set_seed

from structure_aligned import ProteinChain, read_chains
from structure_aligned.data.builder import resolve_structures
from structure_aligned.evaluation.contact_heads import MIN_SEPARATION, LabelledPairs
from structure_aligned.evaluation.contacts import CONTACT_THRESHOLD, contact_map
from structure_aligned.evaluation.trunk_outputs import ResidueAttention, attention_shape
from structure_aligned.models.weights import load_whole
from structure_aligned.training.pretrained import load_tokenizer
from structure_aligned.utils.files import write_text


SCALE = 30.0  # corrected maps of a few hundred residues are of the order of 1 / 100


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--structures", nargs="+", required=True, help="files, folders or globs to train on")
    parser.add_argument("--exclude", type=Path, help="report.json: the chains that its regression is fitted on")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--tokens_per_batch", type=int, default=2048)
    parser.add_argument("--max_length", type=int, default=256, help="residues; longer chains are cropped at random")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--head_learning_rate", type=float, default=1e-2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_training_chains(structures: list[str], excluded: set[str]) -> list[ProteinChain]:
    chains = {}
    for path in tqdm(resolve_structures(structures), "Reading chains", unit="file"):
        for chain in read_chains(path):
            if chain.id not in excluded and len(chain) >= 30:
                chains.setdefault(chain.sequence, chain)
    return list(chains.values())


def crop(chain: ProteinChain, length: int, rng: np.random.Generator) -> tuple[str, LabelledPairs]:
    start = int(rng.integers(max(0, len(chain) - length) + 1))
    part = slice(start, start + length)
    contacts, valid = contact_map(chain.coords[part], chain.sequence[part], CONTACT_THRESHOLD)
    first, second = np.nonzero(np.triu(valid, k=MIN_SEPARATION))
    return chain.sequence[part], LabelledPairs(first, second, contacts[first, second])


def batches(chains: list[ProteinChain], args: argparse.Namespace, rng: np.random.Generator) -> list[list]:
    """Chains of like length together, batches in random order."""
    cropped = [crop(chain, args.max_length, rng) for chain in chains]
    cropped.sort(key=lambda own: len(own[0]) + rng.random() * 16)
    made, current = [], []
    for own in cropped:
        if current and (len(own[0]) + 2) * (len(current) + 1) > args.tokens_per_batch:
            made.append(current)
            current = []
        current.append(own)
    made.append(current)
    return [made[index] for index in rng.permutation(len(made))]


def contact_loss(model, weight, bias, tokenizer, batch, bf16: bool) -> torch.Tensor:
    """Mean cross-entropy of all labelled pairs of a batch."""
    tokens = tokenizer([sequence for sequence, _ in batch], padding=True, return_tensors="pt").to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        attentions = model(**tokens, output_attentions=True).attentions
    lengths = torch.tensor([len(sequence) for sequence, _ in batch], device=model.device)
    position = torch.arange(tokens["input_ids"].shape[1], device=model.device)
    residues = (position >= 1) & (position <= lengths[:, None])
    logits = bias + SCALE * sum(
        ResidueAttention(own.float(), residues).weighted_sum(own_weight) for own, own_weight in zip(attentions, weight)
    )
    scores, labels = [], []
    for row, (_, pairs) in enumerate(batch):
        scores.append(logits[row, torch.from_numpy(pairs.first) + 1, torch.from_numpy(pairs.second) + 1])
        labels.append(torch.from_numpy(pairs.contacts))
    target = torch.cat(labels).to(logits)
    return torch.nn.functional.binary_cross_entropy_with_logits(torch.cat(scores), target)


def main() -> None:
    args = parse_arguments()
    set_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    excluded = set()
    if args.exclude:
        report = json.loads(args.exclude.read_text())
        excluded = {chain for one in report["results"]["contacts"].values() for chain in one["fitted_on"]}
    chains = read_training_chains(args.structures, excluded)
    tokenizer = load_tokenizer(args.model)
    model = load_whole(AutoModelForMaskedLM, args.model, dtype=torch.float32, attn_implementation="eager")
    weight = torch.nn.Parameter(0.02 * torch.randn(attention_shape(model)))
    bias = torch.nn.Parameter(torch.tensor(-3.5))  # a contact in some thirty pairs
    optimizer = torch.optim.AdamW(
        [
            {"params": model.parameters(), "lr": args.learning_rate},
            {"params": [weight, bias], "lr": args.head_learning_rate, "weight_decay": 0.0},
        ]
    )
    total = args.epochs * len(batches(chains, args, np.random.default_rng(args.seed)))
    scheduler = get_scheduler("linear", optimizer, total // 20, total)
    model.train()
    progress, running = tqdm(total=total, desc="Training", unit="step"), None
    for _ in range(args.epochs):
        for batch in batches(chains, args, rng):
            loss = contact_loss(model, weight, bias, tokenizer, batch, args.bf16)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*model.parameters(), weight, bias], 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            progress.update()
            progress.set_postfix(loss=f"{running:.4f}", refresh=False)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    write_text(
        args.output / "ceiling.json",
        json.dumps({"chains": len(chains), "loss": running} | {key: str(value) for key, value in vars(args).items()}),
    )
    print(f"{len(chains)} chains, contact loss {running:.4f}; saved {args.output}.")


if __name__ == "__main__":
    main()
