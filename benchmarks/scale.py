"""
What preparing and training cost at 540 thousand PDB chains and at 10 million predicted structures: arithmetic on the
rates and bytes below, each with where it comes from. `python benchmarks/scale.py` prints the tables of SCALE.md.
"""

PDB = ("540 k PDB chains", 540_000, 240.5)  # mean length: arXiv 2505.16896
PREDICTED = ("10 M predicted structures", 10_000_000, 300.0)  # about the mean of AlphaFold DB's clusters; assumed

# Measured on two shared AMD EPYC cores (the pages in this folder). CPU seconds, so cores can be multiplied.
READ_SECONDS = 0.0032  # per chain: hashing, parsing, 3Di, storing the record (prepare.md)
WRITE_SECONDS = 1 / 1137  # per chain: a 512-wide row from the cache into its Arrow shard (prepare.md)
RECORD_BYTES, INDEX_BYTES, EMBEDDING_BYTES, ARROW_BYTES = 79, 7.7, 1025, 1032  # per residue, 512 wide (prepare.md)
REFERENCE_BYTES = 24  # per residue: six float32 numbers (selection.md)
GEARNET_CPU = 352 / 2  # residues/s a core, GearNet-Edge 6 × 512, float32 (gearnet.md)

# Counted.
GEARNET_FLOP = 140e9 / 300  # per residue, forward: GearNet-Edge, 300 residues
ESM2_650M, REFERENCE_150M = 651e6, 148e6  # parameters; 6 operations each per token trained, 2 per token judged
DIM = 512

# Assumed, since nothing here was run on a GPU: an H100's dense bfloat16 peak, and what share of it is reached.
PEAK = 989e12
GEARNET_SHARE, ESM2_SHARE, LOSS_SHARE = 0.10, 0.40, 0.50
EPOCHS = 25  # arXiv 2505.16896
CORES_PER_GPU = 8
TOKENS = 16_384  # of a rank's micro-batch
LINK = 40e9  # bytes/s a GPU between nodes: 400 Gbit/s less overheads


def seconds(value):
    return f"{value / 3600:,.1f} h" if value >= 3600 else f"{value / 60:,.1f} min"


def size(value):
    return f"{value / 1e12:,.2f} TB" if value >= 1e12 else f"{value / 1e9:,.1f} GB"


def storage(chains, residues):
    kinds = {
        "chain records (feature cache)": RECORD_BYTES,
        "index": INDEX_BYTES,
        "embeddings (feature cache; not with --no_embedding_cache)": EMBEDDING_BYTES,
        "Arrow shards": ARROW_BYTES,
        "reference losses": REFERENCE_BYTES,
    }
    for name, bytes_each in kinds.items():
        yield name, size(residues * bytes_each)
    yield "small files of the feature cache", f"{2 * chains:,}"


def training_step(gpus):
    """Operations a rank spends on one token: the model, and the contrastive loss with the negatives of all ranks."""
    model = 6 * ESM2_650M
    # Own rows against all candidates in both directions; one rank alone computes each similarity once for both.
    per_candidate = 8 * DIM if gpus == 1 else 16 * DIM
    return model, per_candidate * TOKENS * gpus


def times(chains, residues, gpus):
    model, loss = training_step(gpus)
    embedding = residues * GEARNET_FLOP / (PEAK * GEARNET_SHARE) / gpus
    per_epoch = residues * model / (PEAK * ESM2_SHARE) / gpus
    return {
        "read structures": chains * READ_SECONDS / (CORES_PER_GPU * gpus),
        "embed with GearNet": embedding,
        "write shards": chains * WRITE_SECONDS / (CORES_PER_GPU * gpus),
        "reference losses (150M, 4 maskings)": residues * 4 * 2 * REFERENCE_150M / (PEAK * ESM2_SHARE) / gpus,
        "one epoch, 650M": per_epoch,
        "25 epochs": EPOCHS * per_epoch,
        "25 epochs, global negatives": EPOCHS * (per_epoch + residues * loss / (PEAK * LOSS_SHARE) / gpus),
        "25 epochs, GearNet in every step instead": EPOCHS * (per_epoch + embedding),
    }


def main():
    for name, chains, length in (PDB, PREDICTED):
        residues = chains * length
        print(f"\n### {name}: {residues / 1e6:,.0f} M residues\n\n| what | on disk |\n|---|---|")
        for row in storage(chains, residues):
            print(f"| {row[0]} | {row[1]} |")
        columns = [times(chains, residues, gpus) for gpus in (1, 8, 64)]
        print("\n| step | 1 GPU | 8 GPUs | 64 GPUs |\n|---|---|---|---|")
        for step in columns[0]:
            print(f"| {step} | {' | '.join(seconds(column[step]) for column in columns)} |")
        on_cpu = residues / GEARNET_CPU / 64
        print(f"\nGearNet on 64 CPU cores instead of a GPU: {seconds(on_cpu)}.")
    print("\n### A step of 16,384 tokens a rank, by the number of ranks\n")
    print("| ranks | candidates | model, ms | loss, ms | gathered a rank | over the link, ms | rows read a rank |")
    print("|---|---|---|---|---|---|---|")
    for gpus in (1, 8, 64, 512):
        model, loss = (TOKENS * operations for operations in training_step(gpus))
        step = model / (PEAK * ESM2_SHARE) + loss / (PEAK * LOSS_SHARE)
        gathered = 0 if gpus == 1 else TOKENS * gpus * 2 * DIM * 4
        print(
            f"| {gpus} | {TOKENS * gpus:,} | {1e3 * model / (PEAK * ESM2_SHARE):,.0f} | "
            f"{1e3 * loss / (PEAK * LOSS_SHARE):,.0f} | {size(gathered)} | {1e3 * 2 * gathered / LINK:,.0f} | "
            f"{TOKENS * ARROW_BYTES / step / 1e6:,.0f} MB/s |"
        )


if __name__ == "__main__":
    main()
