"""
Residues per second of a whole alignment step (collating, forward, losses, backward, AdamW), on real lengths:

* `authors`: padded batches of 8 proteins in random order, both contrastive losses from N×N matrices, constant
  normalisers: the step as arXiv 2505.16896 runs it, on the same attention and in the same precision;
* `tokens`, `packed`: this package's Trainer with its two ways to make batches;
* `mlm`: plain masked-LM fine-tuning of the same model on the batches of `tokens`;
* `forward`: a forward pass without gradient on the batches of `tokens`, what caching gradients over accumulated
  micro-batches (for more negatives) would cost in addition.

The arms take turns; each turn is a number of residues. Ratios are medians over rounds of paired ratios, with their
range. Embeddings and 3Di tokens are random: they cost the same. Runs on a GPU where there is one (bf16 autocast).

Usage:
    python benchmarks/bench_throughput.py --sequences train.fasta.gz --size 8M 35M --output throughput.md
"""

import argparse
import gzip
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F

from structure_aligned import (
    AutoModelForStructureAlignment,
    DataCollatorForStructureAlignment,
    StructureAlignmentTrainer,
    StructureAlignmentTrainingArguments,
    fresh_trunk,
    residue_contrastive_losses,
)
from structure_aligned.data.batching import row_lengths
from structure_aligned.objectives.losses import IGNORE_INDEX
from structure_aligned.utils.files import write_text


SIZES = {"8M": (6, 320, 20), "35M": (12, 480, 20), "150M": (30, 640, 20), "650M": (33, 1280, 20)}
EMBEDDING = 512
MEAN_LENGTH = 240.5055  # the authors' constant


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=Path, required=True, help="FASTA (.gz) or a table with a column sequence")
    parser.add_argument("--split", help="of a table with a column split: take these rows alone")
    parser.add_argument("--model_type", default="esm", choices=["esm", "AMPLIFY"])
    parser.add_argument("--size", nargs="+", default=["8M"], choices=list(SIZES))
    parser.add_argument("--proteins", type=int, default=8, help="per micro-batch; by tokens 256 for each")
    parser.add_argument("--arms", nargs="+", default=["authors", "tokens", "packed", "mlm", "forward"])
    parser.add_argument("--residues", type=int, default=8000, help="of a turn, at least")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--compile_trunk", action="store_true", help="in every arm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="also write the tables here")
    return parser.parse_args()


def read_sequences(path, split):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
        lines = file.read().splitlines()
    if lines[0].startswith(">"):
        records = "\n".join(lines).split(">")[1:]
        return ["".join(record.split("\n")[1:]) for record in records]
    header, *rows = (line.split("\t") for line in lines)
    column = header.index("sequence")
    return [row[column] for row in rows if split is None or row[header.index("split")] == split]


def make_dataset(sequences):
    rng = np.random.default_rng(0)

    def rows():
        for index, sequence in enumerate(sequences):
            length = len(sequence)
            yield {
                "id": str(index),
                "sequence": sequence,
                "length": length,
                "structure_tokens": rng.integers(0, 20, length).astype(np.uint8),
                "structure_token_mask": np.ones(length, dtype=bool),
                "structure_embedding": rng.normal(size=(length, EMBEDDING)).astype(np.float16).tobytes(),
                "structure_embedding_shape": (length, EMBEDDING),
                "structure_embedding_mask": np.ones(length, dtype=bool),
            }

    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "sequence": datasets.Value("string"),
            "length": datasets.Value("int32"),
            "structure_tokens": datasets.List(datasets.Value("uint8")),
            "structure_token_mask": datasets.List(datasets.Value("bool")),
            "structure_embedding": datasets.Value("large_binary"),
            "structure_embedding_shape": datasets.List(datasets.Value("int32"), length=2),
            "structure_embedding_mask": datasets.List(datasets.Value("bool")),
        }
    )
    return datasets.Dataset.from_list(list(rows()), features=features)


class Arm:
    """One way to train; `turn` takes its next batches until they hold enough residues."""

    def __init__(self, name, size, dataset, arguments, folder):
        self.name, self.arguments, self.cuda = name, arguments, arguments.device == "cuda"
        torch.manual_seed(0)
        config, tokenizer = fresh_trunk(
            arguments.model_type, *SIZES[size], structure_alignment={"structure_dim": EMBEDDING}
        )
        model = AutoModelForStructureAlignment.from_config(config)
        batching = {"authors": "proteins", "packed": "packed"}.get(name, "tokens")
        training_args = StructureAlignmentTrainingArguments(
            output_dir=folder,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not self.cuda,
            bf16=self.cuda,
            batching=batching,
            per_device_train_batch_size=arguments.proteins,
            compile_trunk=arguments.compile_trunk,
            dataloader_num_workers=2 if self.cuda else 0,
        )
        collator = DataCollatorForStructureAlignment(tokenizer, max_length=arguments.max_length)
        self.trainer = StructureAlignmentTrainer(model, training_args, collator, train_dataset=dataset)
        self.model = self.trainer.model.train()
        self.optimizer = self.trainer.create_optimizer()
        self.batches = self._forever()
        self.step = {"authors": self.authors, "mlm": self.mlm, "forward": self.forward}.get(name, self.ours)
        self.positions = 0

    def _forever(self):
        for epoch in itertools.count():
            loader = self.trainer.get_train_dataloader()
            loader.set_epoch(epoch)
            yield from loader

    def turn(self):
        """Residues and seconds."""
        residues, start = 0, self.now()
        while residues < self.arguments.residues:
            batch = next(self.batches)
            proteins = 1 + batch["sequence_ids"].max() if "sequence_ids" in batch else len(batch["input_ids"])
            residues += int(batch["attention_mask"].sum() - 2 * proteins)
            self.positions += batch["input_ids"].numel()
            self.step(batch)
        return residues, self.now() - start

    def now(self):
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def update(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()

    def ours(self, batch):
        counts = self.trainer._get_num_items_in_batch([batch], self.trainer.args.device)
        self.trainer.training_step(self.model, batch, counts)
        self.update()

    def run_model(self, batch, *names):
        with torch.autocast("cuda", torch.bfloat16, enabled=self.cuda):
            return self.model(**{name: batch[name] for name in names})

    def mlm(self, batch):
        labels = batch["labels"]
        # The trunk's own masked-LM forward: without the heads' parameters taking part.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.cuda):
            logits, _ = self.model._run_trunk(batch["input_ids"], batch["attention_mask"])
        F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX).backward()
        self.update()

    @torch.no_grad()
    def forward(self, batch):
        self.run_model(batch, "input_ids", "attention_mask", "structure_embeddings")

    def authors(self, batch):
        outputs = self.run_model(batch, "input_ids", "attention_mask", "structure_embeddings")
        mask = batch["residue_mask"]
        residues = MEAN_LENGTH * len(mask)
        mlm = F.cross_entropy(outputs.logits.flatten(0, 1).float(), batch["labels"].flatten(), reduction="sum")
        tokens = F.cross_entropy(outputs.structure_logits[mask].float(), batch["structure_labels"][mask])
        contrastive = residue_contrastive_losses(
            outputs.sequence_projection[mask], outputs.structure_projection[mask], outputs.logit_scale.exp()
        )
        latent = (contrastive[0].sum() + contrastive[1].sum()) / 2 / residues
        (mlm / (residues * 0.15) + 0.5 * tokens + 0.5 * latent).backward()
        self.update()


def bench(size, dataset, arguments, folder):
    arms = {name: Arm(name, size, dataset, arguments, folder) for name in arguments.arms}
    rates = {name: [] for name in arms}
    residues = dict.fromkeys(arms, 0)
    for index in range(-1, arguments.rounds):  # the first round warms up
        for name in list(arms)[:: 1 if index % 2 else -1]:
            count, seconds = arms[name].turn()
            residues[name] += count
            if index >= 0:
                rates[name].append(count / seconds)
    lines = []
    for name, values in rates.items():
        cells = [f"{statistics.median(values):,.0f}"]
        for other in ("authors", "mlm"):
            ratios = [ours / theirs for ours, theirs in zip(values, rates.get(other, []))]
            cells.append(
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–"
            )
        padding = arms[name].positions / residues[name]
        lines.append(f"| {size} | {name} | {' | '.join(cells)} | {padding:.2f} |")
        print(lines[-1], flush=True)
    return lines


def main():
    arguments = parse_arguments()
    dataset = make_dataset(read_sequences(arguments.sequences, arguments.split))
    lengths = row_lengths(dataset, arguments.max_length, 2)
    order = np.random.default_rng(0).permutation(lengths)
    at_random = [order[i : i + arguments.proteins] for i in range(0, len(order), arguments.proteins)]
    ceiling = sum(len(batch) * batch.max() for batch in at_random) / lengths.sum()
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        f"{device}, torch {torch.__version__}, {'bf16 autocast' if arguments.device == 'cuda' else 'float32'}, sdpa, "
        f"{arguments.model_type}; {len(dataset)} proteins of {lengths.mean() - 2:.0f} residues on average (longest "
        f"{lengths.max() - 2}), {arguments.proteins} proteins or {256 * arguments.proteins} tokens a micro-batch; "
        f"{arguments.rounds} rounds of {arguments.residues:,} residues an arm.",
        "",
        f"Without its padding, a batch of {arguments.proteins} at random would have {ceiling:.2f} times fewer "
        "positions: the most that removing padding alone can give.",
        "",
        "| model | arm | residues/s | times `authors` (range) | times `mlm` (range) | positions per residue |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.size:
            lines += bench(size, dataset, arguments, folder)
    if arguments.output:
        write_text(arguments.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
