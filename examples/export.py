"""
Write an aligned model as a plain checkpoint of its family, for people who know nothing of this package.

    python examples/export.py --model outputs/aligned --output exported/saesm2_650m
    python examples/export.py --model outputs/aligned --output exported/saesm2_650m_bf16 --dtype bfloat16
    python examples/export.py --model outputs/lora --output exported/saesm2_650m --base facebook/esm2_t33_650M_UR50D
    python examples/export.py --model outputs/lora --output outputs/merged --with_heads

An ESM2 is loaded by plain Transformers: EsmForMaskedLM.from_pretrained("exported/saesm2_650m"), where there was
"facebook/esm2_t33_650M_UR50D". An AMPLIFY has the layout of the published ones: AutoModel loads it after
`import structure_aligned`. Adapters (LoRA) are merged; with --with_heads that is all, and the alignment heads stay.
"""

import argparse

from structure_aligned.hub.export import export_trunk
from structure_aligned.models.folders import holds_adapters
from structure_aligned.training.adapters import merge_adapters
from structure_aligned.training.pretrained import load_tokenizer
from structure_aligned.utils.scripts import clean_errors


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an aligned model or of adapters")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--base", help="for adapters: name or folder of the model they adapt, if it was moved")
    parser.add_argument("--dtype", help="of the weights, such as bfloat16; by default as they are")
    parser.add_argument("--tokenizer", help="name or folder; by default the one in the model's folder")
    parser.add_argument("--with_heads", action="store_true", help="for adapters: merge them and keep the heads")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    arguments = parser.parse_args(argv)
    if arguments.base and not holds_adapters(arguments.model):
        parser.error(f"--base is for adapters, and {arguments.model} holds none")
    if arguments.with_heads:
        if not holds_adapters(arguments.model):
            parser.error(f"--with_heads merges adapters, and {arguments.model} holds none: it can be used as it is")
        if arguments.dtype or arguments.tokenizer:
            parser.error("--with_heads goes with neither --dtype nor --tokenizer")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.with_heads:
        merge_adapters(arguments.model, arguments.output, arguments.base, arguments.overwrite)
        print(f"Saved {arguments.output}: AutoModelForStructureAlignment.from_pretrained loads it.")
        return
    export_trunk(
        arguments.model,
        arguments.output,
        dtype=arguments.dtype,
        tokenizer=load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None,
        base=arguments.base,
        overwrite=arguments.overwrite,
    )
    print(f"Saved {arguments.output}: a checkpoint like the published ones of its family.")


if __name__ == "__main__":
    clean_errors(main)()
