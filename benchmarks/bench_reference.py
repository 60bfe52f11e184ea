"""
Reference losses that were computed once against those of the reference model run in the step.

Agreement: Spearman correlation of the reference losses and Jaccard overlap of the kept residues, precomputed against
online. The ceiling is online against online with other masks: no stored number can follow masks that it does not know.
Overhead: seconds of a training step with either, as paired ratios to a step without selection, with bootstrap
intervals of their median.

Usage:
    python benchmarks/bench_reference.py --model outputs/aligned --reference outputs/reference --dataset datasets/pdb
"""

import argparse
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from scipy.stats import bootstrap, spearmanr

from structure_aligned import (
    AutoModelForStructureAlignment,
    DataCollatorForStructureAlignment,
    StructureAlignmentTrainer,
    StructureAlignmentTrainingArguments,
    attach_reference_losses,
    select_residues,
)
from structure_aligned.training.pretrained import load_tokenizer
from structure_aligned.training.reference import PrecomputedReference
from structure_aligned.training.running import SELECTED_LOSSES
from structure_aligned.utils.files import write_text


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="aligned checkpoint, the model in training")
    parser.add_argument("--reference", required=True, help="checkpoint of examples/train_reference.py")
    parser.add_argument("--dataset", required=True, help="folder of a dataset that neither was trained on")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--maskings", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each kind")
    parser.add_argument("--work", type=Path, default=Path("outputs/bench_reference"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="also write the tables here")
    return parser.parse_args()


def make_trainer(arguments, rows, reference=None, **options):
    return StructureAlignmentTrainer(
        AutoModelForStructureAlignment.from_pretrained(arguments.model),
        StructureAlignmentTrainingArguments(
            output_dir=str(arguments.work),
            use_cpu=arguments.device == "cpu",
            bf16=arguments.device == "cuda",
            report_to=[],
            reference_allow_seen=True,
            **options,
        ),
        DataCollatorForStructureAlignment(load_tokenizer(arguments.model)),
        reference_model=reference,
        train_dataset=rows,
    )


def load_reference(arguments):
    return AutoModelForStructureAlignment.from_pretrained(arguments.reference).to(arguments.device)


def agreement(arguments, rows):
    reference = load_reference(arguments)
    online = make_trainer(arguments, rows, reference)
    online.model.eval()
    stored = {
        f"precomputed, {count} maskings": attach_reference_losses(
            rows, reference, num_maskings=count, seed=1, cache_dir=arguments.work / "losses", allow_seen=True
        )
        for count in arguments.maskings
    }
    collator = online.data_collator
    lines = ["| reference losses | loss | Spearman with online | Jaccard of kept residues |", "|---|---|---:|---:|"]
    correlations, overlaps = {}, {}
    order = np.random.default_rng(0).permutation(len(rows))
    for start in range(0, len(rows) - arguments.batch_size + 1, arguments.batch_size):
        chosen = [int(index) for index in order[start : start + arguments.batch_size]]
        collator.set_epoch(0)
        inputs = online._prepare_inputs(collator([rows[index] for index in chosen]))
        with torch.no_grad():
            current = online._residue_losses(online._forward(online.model, inputs), inputs)
        expected = online.reference(inputs)
        collator.set_epoch(1)
        other_masks = online._prepare_inputs(collator([rows[index] for index in chosen]))
        candidates = {"online, other masks (ceiling)": online.reference(other_masks)}
        collator.set_epoch(0)
        for name, attached in stored.items():
            batch = online._prepare_inputs(collator([attached[index] for index in chosen]))
            candidates[name] = PrecomputedReference()(batch)
        for kind, losses in candidates.items():
            for name in SELECTED_LOSSES:
                theirs, ours = getattr(expected, name), getattr(losses, name)
                kept = [select_residues(getattr(current, name), values, 0.8) for values in (theirs, ours)]
                key = (kind, name)
                correlations.setdefault(key, []).append(spearmanr(theirs.cpu(), ours.cpu()).statistic)
                overlap = (kept[0] & kept[1]).sum() / (kept[0] | kept[1]).sum()
                overlaps.setdefault(key, []).append(overlap.item())
    chance = 0.8 * 0.8 / (1 - 0.2 * 0.2)
    for kind, name in correlations:
        rho, jaccard = correlations[kind, name], overlaps[kind, name]
        cells = [f"{np.mean(values):.3f} ± {np.std(values):.3f}" for values in (rho, jaccard)]
        lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Means and standard deviations over batches of {arguments.batch_size}; chance overlap {chance:.3f}.",
    ]
    return lines


def overhead(arguments, rows):
    reference = load_reference(arguments)
    attached = attach_reference_losses(
        rows, reference, cache_dir=arguments.work / "losses", allow_seen=True, num_maskings=4, seed=1
    )
    trainers = {
        "none": make_trainer(arguments, rows),
        "precomputed": make_trainer(arguments, attached),
        "online": make_trainer(arguments, rows, reference),
    }
    steps = {}
    for trainer in trainers.values():
        trainer.create_optimizer()
        trainer.model.to(arguments.device).train()
    synchronize = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    seconds = {name: [] for name in [*trainers, "reference alone"]}
    for index in range(-2, arguments.rounds):
        chosen = [(index * arguments.batch_size + offset) % len(rows) for offset in range(arguments.batch_size)]
        turn = list(trainers)
        turn = turn[index % 3 :] + turn[: index % 3]
        taken = {}
        for name in turn:
            trainer = trainers[name]
            batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in chosen]))
            steps[name] = batch
            synchronize()
            start = time.perf_counter()
            counts = trainer._get_num_items_in_batch([batch], trainer.args.device)
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
            loss.backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            synchronize()
            taken[name] = time.perf_counter() - start
        start = time.perf_counter()
        trainers["online"].reference(steps["online"])
        synchronize()
        taken["reference alone"] = time.perf_counter() - start
        if index >= 0:
            for name, value in taken.items():
                seconds[name].append(value)
    lines = ["| step | ms, median | times none (95 % interval of the median) |", "|---|---:|---:|"]
    for name, values in seconds.items():
        ratios = np.array(values) / np.array(seconds["none"])
        low, high = bootstrap((ratios,), np.median, n_resamples=2000, method="basic", rng=0).confidence_interval
        shown = f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"| {name} | {1000 * np.median(values):.1f} | {shown} |")
    bound = 1 + 1.3 * np.median(np.array(seconds["reference alone"]) / np.array(seconds["none"]))
    lines += ["", f"Bound asked of online: 1 + 1.3 × (reference alone / step) = {bound:.3f}."]
    return lines


def main():
    arguments = parse_arguments()
    rows = datasets.load_from_disk(arguments.dataset)[arguments.split]
    lines = [
        f"{len(rows)} chains, {sum(rows['length'][:])} residues; batches of {arguments.batch_size}; "
        f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}.",
        "",
        *agreement(arguments, rows),
        "",
        *overhead(arguments, rows),
    ]
    print("\n".join(lines))
    if arguments.output:
        write_text(arguments.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
