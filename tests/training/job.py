"""
A small training run as a process of its own: `python -m tests.training.job OUT [options as JSON]`.

Prints nothing; rank 0 saves the final parameters to OUT/parameters.safetensors. With `kill_at_step` the process kills
itself, as a node that dies would end it.
"""

import json
import os
import signal
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.training.adapters import add_lora
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny


class KillAtStep(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Damaged(DataCollatorForStructureAlignment):
    broken = None

    def _example(self, row):
        if row["id"] == self.broken:
            raise ValueError(f"{row['id']} is damaged")
        return super()._example(row)


class Spoilt(StructureAlignmentTrainer):
    rank = None

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return loss * (torch.nan if self.rank == self.args.process_index and self.state.global_step == 2 else 1.0)


def run(
    output,
    family="esm",
    rows=18,
    kill_at_step=None,
    kill_rank=0,
    double=False,
    resume=False,
    without_structure=(),
    reference=False,
    broken_row=None,
    spoilt_rank=None,
    lora=None,
    rank_1=None,
    stream=None,
    **options,
):
    if rank_1 is not None and os.environ.get("RANK") == "1":
        rows, options = rank_1.get("rows", rows), options | {name: rank_1[name] for name in rank_1 if name != "rows"}
    torch.set_num_threads(1)
    model = tiny.FAMILIES[family].model()
    model = model.double() if double else model
    model = model if lora is None else add_lora(model, **lora)
    dataset = tiny.dataset(rows)
    if reference:
        # Any numbers will do: what is tested is that all processes rank by the same.
        rng = np.random.default_rng(0)
        losses = [rng.normal(size=(length, 6)).astype(np.float32).tobytes() for length in dataset["length"]]
        dataset = dataset.add_column("reference_losses", losses)
    if without_structure:
        masks = [
            [False] * len(m) if i in without_structure else m
            for i, m in enumerate(dataset["structure_embedding_mask"])
        ]
        dataset = dataset.remove_columns("structure_embedding_mask").add_column("structure_embedding_mask", masks)
    if stream:
        dataset = dataset.to_iterable_dataset(num_shards=stream)
    tokenizer = tiny.FAMILIES[family].tokenizer()
    arguments = {"output_dir": str(output), "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 3}
    collator = Damaged(tokenizer)
    collator.broken = f"row{broken_row}_A"
    Spoilt.rank = spoilt_rank
    trainer = (StructureAlignmentTrainer if spoilt_rank is None else Spoilt)(
        model,
        StructureAlignmentTrainingArguments(**(arguments | options)),
        collator,
        train_dataset=dataset,
        eval_dataset=tiny.dataset(5),
        callbacks=[KillAtStep(kill_at_step)] if kill_at_step and int(os.environ.get("RANK", 0)) == kill_rank else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        save_file(
            {name: p.detach().contiguous() for name, p in model.named_parameters()}, f"{output}/parameters.safetensors"
        )
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        with open(f"{output}/metrics.json", "w") as file:
            json.dump(metrics, file)


if __name__ == "__main__":
    run(sys.argv[1], **json.loads(sys.argv[2]))
