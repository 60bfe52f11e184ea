"""
Does residue selection find bad coordinates? A controlled test on real chains.

Stretches of 8 to 15 residues, a fifth of the residues of half of the training chains, get Gaussian noise on all their
backbone atoms. A reference model is trained on other, clean chains of high quality. Then one model per arm and seed is
trained: without selection, keeping the largest excess losses (the method), keeping the smallest. Reported are the
share of residues dropped, per loss, in the corrupted stretches, in the untouched residues of corrupted chains by their
distance to a corrupted CA, and in chains that were left alone; and the token accuracy on clean validation chains.

Usage:
    python benchmarks/selection_experiment.py --structures data/structures --output selection.md
"""

import argparse
import csv
import dataclasses
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import datasets
import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.stats import ttest_rel
from transformers import set_seed

from structure_aligned import (
    AutoModelForStructureAlignment,
    DataCollatorForStructureAlignment,
    StructureAlignmentTrainer,
    StructureAlignmentTrainingArguments,
    StructureDatasetBuilder,
    attach_reference_losses,
    embedding_dim,
    fresh_trunk,
    load_pgnn,
    majority_accuracy,
    read_chains,
    write_mmcif,
    write_training_chains,
)
from structure_aligned.objectives.losses import IGNORE_INDEX
from structure_aligned.utils.files import atomic_file, write_text


ARMS = {"none": {"selection_ratio": 1.0}, "largest": {}, "smallest": {"selection_keep": "smallest"}}
LOSSES = ("token", "seq_to_struct", "struct_to_seq")
GROUPS = {
    1: "corrupted residues",
    2: "corrupted chains, untouched, below 8 Å",
    3: "corrupted chains, untouched, 8 to 16 Å",
    4: "corrupted chains, untouched, beyond 16 Å",
    5: "untouched chains",
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=Path, required=True, help="folder with train/, valid/ and chains.tsv")
    parser.add_argument("--work", type=Path, default=Path("outputs/selection"), help="corrupted files, caches, models")
    parser.add_argument("--chains", type=int, default=400, help="of the main training set, half of them corrupted")
    parser.add_argument("--noise", type=float, default=3.0, help="standard deviation in Å")
    parser.add_argument("--epochs", type=float, default=8, help="of the main runs")
    parser.add_argument("--reference-epochs", type=float, default=12)
    parser.add_argument("--mode", default="precomputed", choices=["precomputed", "online"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--pgnn", default="gearnet", help="as for load_pgnn; by default an untrained GearNet")
    parser.add_argument("--pgnn-dim", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8, help="proteins (default: %(default)s, the paper's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="also write the tables here, and a picture beside")
    return parser.parse_args()


def corrupt(chain, noise, rng, share=0.2):
    """The chain with noise on stretches of 8 to 15 residues, `share` of its residues, and the mask of those."""
    hit = np.zeros(len(chain), dtype=bool)
    for _ in range(1000):
        left = round(share * len(chain)) - hit.sum()
        if left <= 0:
            break
        length = int(min(rng.integers(8, 16), max(left, 8)))
        start = int(rng.integers(len(chain) - length + 1))
        if not hit[max(start - 1, 0) : start + length + 1].any():
            hit[start : start + length] = True
    coords = chain.coords.copy()
    coords[hit] += rng.normal(scale=noise, size=coords[hit].shape).astype(np.float32)
    return dataclasses.replace(chain, coords=coords), hit


def groups_of(chain, hit):
    """Codes of `GROUPS`, 0 where a residue has no CA. Distances are those of the structure before the noise."""
    if hit is None:
        return np.full(len(chain), 5)
    ca = np.nan_to_num(chain.ca, nan=1e6)
    distance = cKDTree(ca[hit]).query(ca)[0]
    codes = np.digitize(distance, [8, 16]) + 2
    codes[hit] = 1
    return np.where(np.isnan(chain.ca).any(axis=1), 0, codes)


def make_files(arguments):
    """Folders of the three training sets' files, and the group of every residue of the main one."""
    with open(arguments.structures / "chains.tsv") as file:
        table = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "train"]
    good = [row for row in table if row["r_free"] and float(row["r_free"]) <= 0.20 and float(row["resolution"]) <= 1.7]
    good_ids = {row["id"] for row in good}
    others = [row["id"] for row in table if row["id"] not in good_ids]
    rng = np.random.default_rng(0)
    chosen = [others[index] for index in rng.permutation(len(others))]
    main, groups = arguments.work / f"main_{arguments.chains}_{arguments.noise}", {}
    main.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        (chain,) = read_chains(arguments.structures / "train" / f"{name}.cif.gz")
        if len(chain) < 60 or len(groups) == arguments.chains:
            continue
        # A few entries have two residues of one number, which mmCIF cannot tell apart once the insertion is lost.
        chain = dataclasses.replace(chain, residue_numbers=tuple(map(str, range(1, len(chain) + 1))))
        hit = None
        if len(groups) % 2:
            corrupted, hit = corrupt(chain, arguments.noise, rng)
        groups[chain.id] = groups_of(chain, hit)
        write_mmcif(chain if hit is None else corrupted, main / f"{name}.cif")
    reference = [arguments.structures / "train" / f"{name}.cif.gz" for name in sorted(good_ids)]
    return {"reference": reference, "train": main, "validation": arguments.structures / "valid"}, groups


class GroupCollator(DataCollatorForStructureAlignment):
    """Brings each residue's group along. No chain here is long enough to be cropped."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        if "group" in rows[0]:
            batch["group"] = torch.zeros_like(batch["input_ids"])
            for index, row in enumerate(rows):
                batch["group"][index, 1 : 1 + len(row["group"])] = torch.as_tensor(row["group"])
        return batch


class CountingTrainer(StructureAlignmentTrainer):
    """Counts what is dropped, by group, from the second half of the training on."""

    def select(self, losses, inputs):
        kept, excess = super().select(losses, inputs)
        if kept and self.model.training and self.state.global_step >= self.state.max_steps / 2:
            for name in kept:
                at = inputs["structure_labels"] != IGNORE_INDEX if name == "token" else inputs["residue_mask"]
                codes = inputs["group"][at]
                self.seen[name] += torch.bincount(codes, minlength=6).cpu().numpy()
                self.dropped[name] += torch.bincount(codes[~kept[name]], minlength=6).cpu().numpy()
        return kept, excess


def train(arguments, name, data, seed, epochs, reference=None, **options):
    set_seed(seed)
    heads = {"structure_alignment": {"structure_dim": embedding_dim(data["train"])}}
    config, tokenizer = fresh_trunk("esm", arguments.layers, arguments.width, arguments.heads, **heads)
    trainer = CountingTrainer(
        AutoModelForStructureAlignment.from_config(config),
        StructureAlignmentTrainingArguments(
            output_dir=str(arguments.work / name),
            use_cpu=arguments.device == "cpu",
            bf16=arguments.device == "cuda",
            num_train_epochs=epochs,
            learning_rate=arguments.learning_rate,
            head_learning_rate=2 * arguments.learning_rate,
            per_device_train_batch_size=arguments.batch_size,
            batching="proteins",
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=1000,
            seed=seed,
            **options,
        ),
        GroupCollator(tokenizer, seed=seed),
        reference_model=reference,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
    )
    trainer.seen, trainer.dropped = (defaultdict(lambda: np.zeros(6, dtype=int)) for _ in range(2))
    start = time.perf_counter()
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    print(
        f"{name}: token accuracy {metrics['eval_token_accuracy']:.4f}, {time.perf_counter() - start:.0f} s", flush=True
    )
    return trainer, metrics


def spread(values, digits=3):
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values) if len(values) > 1 else 0:.{digits}f}"


def plot(dropped, path):
    """Dropped share by group, keeping the largest excess; bars are means over seeds, lines their range."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    shown = {"token": "3Di token", "seq_to_struct": "sequence → structure", "struct_to_seq": "structure → sequence"}
    for offset, (name, color) in enumerate(zip(LOSSES, ("#0072b2", "#009e73", "#cc79a7"))):
        values = np.array(dropped["largest", name])[:, list(GROUPS)]
        middle = values.mean(axis=0)
        at = np.arange(len(GROUPS)) + 0.27 * (offset - 1)
        axes.bar(at, middle, 0.25, color=color, label=shown[name])
        axes.errorbar(at, middle, [middle - values.min(axis=0), values.max(axis=0) - middle], fmt="none", color="0.2")
    axes.axhline(0.2, color="0.4", linestyle="--", linewidth=1)
    axes.text(len(GROUPS) - 0.45, 0.203, "dropped of all: 20 %", ha="right", va="bottom", color="0.3", fontsize=9)
    axes.set_xticks(range(len(GROUPS)), [label.replace(", ", "\n") for label in GROUPS.values()], fontsize=9)
    axes.set_ylabel("share of residues dropped")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=130)


def main():
    arguments = parse_arguments()
    files, groups = make_files(arguments)
    pgnn = load_pgnn(arguments.pgnn, arguments.device, width=arguments.pgnn_dim)
    builder = StructureDatasetBuilder(files, pgnn, arguments.work / "cache")
    builder.download_and_prepare()
    data = builder.as_dataset()
    data["train"] = data["train"].add_column("group", [groups[name].tolist() for name in data["train"]["id"]])

    # For bench_reference.py, which wants chains that neither model was trained on.
    datasets.DatasetDict(validation=data["validation"]).save_to_disk(arguments.work / "dataset")
    folder = arguments.work / "reference"
    sets = {"train": data["reference"], "validation": data["validation"]}
    _, judged = train(arguments, "reference", sets, 100, arguments.reference_epochs, selection_ratio=1.0)
    write_training_chains(folder, data["reference"])
    reference = AutoModelForStructureAlignment.from_pretrained(folder).to(arguments.device)
    main_set = data["train"]
    if arguments.mode == "precomputed":
        main_set = attach_reference_losses(main_set, reference, cache_dir=arguments.work / "losses")
    sets = {"train": main_set, "validation": data["validation"]}

    accuracy, dropped = defaultdict(list), defaultdict(list)
    for seed in arguments.seeds:
        for arm, options in ARMS.items():
            online = {"reference": reference} if arguments.mode == "online" and arm != "none" else {}
            trainer, metrics = train(arguments, f"{arm}_{seed}", sets, seed, arguments.epochs, **online, **options)
            accuracy[arm].append(metrics["eval_token_accuracy"])
            for name in trainer.seen:
                dropped[arm, name].append(trainer.dropped[name] / np.maximum(trainer.seen[name], 1))

    counts = np.bincount(np.concatenate(list(groups.values())), minlength=6)
    shape = f"ESM2 {arguments.layers} × {arguments.width}"
    lines = [
        f"{shape}, pGNN {arguments.pgnn} (width {arguments.pgnn_dim}), {len(data['reference'])} reference chains "
        f"({arguments.reference_epochs:g} epochs; validation token accuracy {judged['eval_token_accuracy']:.3f}, "
        f"majority class {majority_accuracy(data['validation']):.3f}), {len(groups)} chains in the main set "
        f"({arguments.epochs:g} epochs), noise {arguments.noise:g} Å, reference losses {arguments.mode}, ratio 0.8, "
        f"{len(arguments.seeds)} seeds (mean ± standard deviation); torch {torch.__version__} on {arguments.device}.",
        "",
        "Share of residues dropped in the second half of the training:",
        "",
        "| group | residues | "
        + " | ".join(f"{arm}: {name}" for arm in ("largest", "smallest") for name in LOSSES)
        + " |",
        "|---|---:|" + "---:|" * 6,
    ]
    for code, label in GROUPS.items():
        cells = [
            spread([shares[code] for shares in dropped[arm, name]])
            for arm in ("largest", "smallest")
            for name in LOSSES
        ]
        lines.append(f"| {label} | {counts[code]} | {' | '.join(cells)} |")
    lines += ["", "| arm | validation token accuracy | difference to none, paired over seeds |", "|---|---:|---:|"]
    for arm, values in accuracy.items():
        difference = ""
        if arm != "none":
            paired = [a - b for a, b in zip(values, accuracy["none"])]
            p = f", p = {ttest_rel(values, accuracy['none']).pvalue:.2g}" if len(paired) > 1 else ""
            difference = spread(paired, 4) + p
        lines.append(f"| {arm} | {spread(values, 4)} | {difference} |")
    print("\n".join(lines))
    raw = {"accuracy": accuracy, "dropped": {f"{a}/{n}": [v.tolist() for v in vs] for (a, n), vs in dropped.items()}}
    write_text(arguments.work / "result.json", json.dumps(raw, indent=1))
    if arguments.output:
        write_text(arguments.output, "\n".join(lines) + "\n")
        plot(dropped, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
