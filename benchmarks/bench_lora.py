"""
What low-rank adapters save against training everything: trainable parameters, peak memory of training steps, and the
size of what is saved. An untrained ESM2 or AMPLIFY with fresh alignment heads (structure_dim 512), all tasks, AdamW.

Each row is measured in a process of its own: the peak over some steps, the model and its optimizer included, above
what the process held with everything imported and one step of a tiny model made. On a CPU that is resident memory
(VmHWM, Linux), on a GPU what torch has allocated. The peak comes in the second step, where AdamW's moments are there.
Rows run one after the other, with a malloc that gives freed tensors back at once (glibc): what it would keep for later
depends on their order and sizes and is no need of the training.

Usage:
    python benchmarks/bench_lora.py --output lora.md                       # 35M: ESM2 12 × 480 × 20
    python benchmarks/bench_lora.py --layers 33 --width 1280 --heads 20 --precision bf16  # 650M, on a GPU
    python benchmarks/bench_lora.py --layers 33 --width 1280 --heads 20 --precision bf16 --four-bit
    python benchmarks/bench_lora.py --model-type AMPLIFY --layers 24 --width 640 --heads 10
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from structure_aligned.models.alignment import AutoModelForStructureAlignment
from structure_aligned.models.trunks import fresh_trunk
from structure_aligned.training.adapters import add_lora, four_bit_config
from structure_aligned.utils.files import write_text


CASES = {
    "all parameters": {},
    "adapters: attention": {"target": "attention"},
    "adapters: attention+ffn": {"target": "attention+ffn"},
}
STRUCTURE_DIM = 512
MIB = 2**20


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", default="esm", help="esm or AMPLIFY")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--length", type=int, default=256, help="of a protein, special tokens included")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="bf16: autocast")
    parser.add_argument("--checkpointing", nargs="+", type=int, default=[0, 1], choices=[0, 1])
    parser.add_argument("--four-bit", action="store_true", help="also with the trunk in 4 bits (bitsandbytes)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice by default")
    parser.add_argument("--output", type=Path, help="also write the table here")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # internal: one row in a process of its own
    return parser.parse_args()


def make_model(arguments, options, four_bit, sizes):
    config, tokenizer = fresh_trunk(arguments.model_type, *sizes, structure_alignment={"structure_dim": STRUCTURE_DIM})
    torch.manual_seed(0)
    model = AutoModelForStructureAlignment.from_config(config)
    if four_bit:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForStructureAlignment.from_pretrained(
                folder, quantization_config=four_bit_config(), device_map=arguments.device
            )
    model = model if four_bit else model.to(arguments.device)
    for name, parameter in model.named_parameters():
        if "contact_head" in name:  # as the Trainer has it
            parameter.requires_grad_(False)
    return (add_lora(model, arguments.rank, **options) if options else model).train(), tokenizer


def make_batch(tokenizer, arguments, count):
    generator = torch.Generator().manual_seed(0)
    residues = torch.tensor(tokenizer.convert_tokens_to_ids(list("ACDEFGHIKLMNPQRSTVWY")))
    shape = (count, arguments.length)
    ids = residues[torch.randint(0, 20, shape, generator=generator)]
    masked = torch.rand(shape, generator=generator) < 0.15
    batch = {
        "input_ids": ids.masked_fill(masked, tokenizer.mask_token_id),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "labels": ids.masked_fill(~masked, -100),
        "structure_labels": torch.randint(0, 20, shape, generator=generator),
        "structure_embeddings": torch.randn(*shape, STRUCTURE_DIM, generator=generator),
        "residue_mask": torch.ones(shape, dtype=torch.bool),
    }
    return {name: value.to(arguments.device) for name, value in batch.items()}


def train(model, batch, arguments, steps):
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
    for _ in range(steps):
        with torch.autocast(arguments.device.split(":")[0], torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def measure(arguments):
    options, checkpointing, four_bit = json.loads(arguments.measure)
    on_gpu = arguments.device.startswith("cuda")
    count = max(1, arguments.tokens // arguments.length)
    # The libraries' own buffers, which come with the first step of any size, are not the model's.
    small, tokenizer = make_model(arguments, options, False, (1, 32, 4))
    batch = make_batch(tokenizer, arguments, count)
    train(small, {name: value[:1] for name, value in batch.items()}, arguments, 1)
    del small
    if on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
    else:
        before = resident("VmRSS")
    model, _ = make_model(arguments, options, four_bit, (arguments.layers, arguments.width, arguments.heads))
    if checkpointing:
        model.gradient_checkpointing_enable()
    # From here on, and not while the model is made (in 4 bits it is first there as it is).
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    train(model, batch, arguments, arguments.steps)
    peak = torch.cuda.max_memory_allocated() / MIB - before / MIB if on_gpu else resident("VmHWM") - before
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) / MIB
    return {"trained": trained, "peak": peak, "saved": saved}


def resident(field):
    """MiB of this process: now (`VmRSS`) or at its peak (`VmHWM`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def row_of(*case):
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", json.dumps(case)]
    # Freed tensors go back to the system at once (glibc); its own way is to keep the room for others.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        sys.exit(result.stderr[-3000:])
    return json.loads(result.stdout.splitlines()[-1])


def main():
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    on_gpu = arguments.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    count = max(1, arguments.tokens // arguments.length)
    lines = [
        f"{arguments.model_type} {arguments.layers} × {arguments.width} × {arguments.heads}, rank {arguments.rank}, "
        f"{count} × {arguments.length} tokens a step, {arguments.precision}; {device}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {arguments.steps} steps.",
        "",
        "| trained | layers recomputed | parameters trained | share | peak, MiB | of full | saved, MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    full = None
    for checkpointing in arguments.checkpointing:
        for four_bit in [False, True] if arguments.four_bit else [False]:
            for name, options in CASES.items():
                if four_bit and not options:
                    continue
                row = row_of(options, checkpointing, four_bit)
                full = row if full is None else full  # the first: everything trained, nothing recomputed
                lines.append(
                    f"| {name}{', 4 bits' if four_bit else ''} | {'yes' if checkpointing else 'no'} | "
                    f"{row['trained']:,} | {row['trained'] / full['trained']:.1%} | {row['peak']:,.0f} | "
                    f"{row['peak'] / full['peak']:.0%} | {row['saved']:,.1f} |"
                )
                print(lines[-1], flush=True)
    if arguments.output:
        write_text(arguments.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
