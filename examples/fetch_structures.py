"""
Fetch structures from the PDB and from AlphaFold DB: a folder of mmCIF files for examples/prepare.py.

    python examples/fetch_structures.py --ids 1ubq P00520 --output structures
    python examples/fetch_structures.py --file ids.txt --output structures

PDB ids and UniProt accessions may be mixed, and separated by spaces, commas or line ends. Of a line of a file whose
first word alone is an id, the rest is not read, nor are lines that begin with #; - is the standard input. Each file is
parsed before it gets its name, so the command may be killed and started again: what is there and sound is kept. Failed
ids, and the reasons, are written to fetch_report.tsv; the exit code is then 1. Please leave --max_connections and
--delay at what the archives can bear.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from structure_aligned.structure.downloading import USER_AGENT
from structure_aligned.structure.fetch import AFDB_URL, PDB_URL, REPORT_NAME, fetch_structures, split_ids
from structure_aligned.utils.files import read_lines
from structure_aligned.utils.scripts import clean_errors


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", nargs="+", default=[], help="PDB ids and UniProt accessions")
    parser.add_argument("--file", help="of ids; - for the standard input")
    parser.add_argument("--output", required=True, type=Path, help="folder of the structure files")
    parser.add_argument("--report", type=Path, help=f"by default {REPORT_NAME} in the folder")
    parser.add_argument("--pdb_url", default=PDB_URL, help="folder of PDB files (default: %(default)s)")
    parser.add_argument("--afdb_url", default=AFDB_URL, help="AlphaFold DB (default: %(default)s)")
    parser.add_argument("--afdb_version", type=int, help="of the models; by default the newest")
    parser.add_argument("--max_connections", type=int, default=4)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds between two requests to a host")
    parser.add_argument("--timeout", type=float, default=30, help="seconds without a byte")
    parser.add_argument("--retries", type=int, default=4)
    parser.add_argument("--backoff", type=float, default=1, help="seconds before the first retry; doubled each time")
    parser.add_argument("--max_wait", type=float, default=120, help="seconds a server may ask to wait")
    parser.add_argument("--user_agent", default=USER_AGENT, help="who asks; best with a mail address")
    return parser.parse_args(argv)


def read_ids(path: str) -> list[str]:
    lines = read_lines(path, "a file of ids, or - for the standard input")
    return [one for line in lines for one in split_ids(line)]


def run(args: argparse.Namespace) -> int:
    ids = [one for given in args.ids for one in split_ids(given)]
    ids += [] if args.file is None else read_ids(args.file)
    if not ids:
        raise ValueError("There is nothing to fetch; give --ids, or --file with at least one id.")
    names = ("pdb_url", "afdb_url", "afdb_version", "max_connections", "delay", "timeout", "retries", "backoff")
    names += ("max_wait", "user_agent")
    report = fetch_structures(ids, args.output, **{name: getattr(args, name) for name in names})
    path = args.report or args.output / REPORT_NAME
    report.write_tsv(path)
    print(
        f"{len(report.results)} entries: {report.count('fetched')} fetched, {report.count('kept')} were there, "
        f"{report.count('failed')} could not be had. Saved {args.output}; {path} says why."
    )
    for result in report.failed[:5]:
        print(f"  {result.id}: {result.reason}")
    return 1 if report.failed else 0


@partial(clean_errors, code=2)
def main(argv: list[str] | None = None) -> None:
    sys.exit(run(parse_arguments(argv)))


if __name__ == "__main__":
    main()
