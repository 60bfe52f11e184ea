"""
Upload a trained model, or a prepared dataset, with its card to the hub, or show what would be uploaded.

    python examples/push.py outputs/saesm2_35m owner/saesm2_35m --dry_run
    python examples/push.py outputs/saesm2_35m owner/saesm2_35m --private --report outputs/evaluation/report.json
    python examples/push.py datasets/pdb owner/pdb_gearnet --license cc0-1.0

Log in with `hf auth login`, or set HF_TOKEN: a token on a command line would be in the shell's history. Results of
--report are copied into the folder and put into the card first. A dataset is what examples/prepare.py wrote.
"""

import argparse
from pathlib import Path

from datasets.config import DATASETDICT_JSON_FILENAME

from structure_aligned.hub.cards import CARD_NAME, add_results, write_model_card
from structure_aligned.hub.prepared_dataset import push_dataset_to_hub
from structure_aligned.hub.push import push_to_hub
from structure_aligned.utils.scripts import clean_errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the saved model or the dataset")
    parser.add_argument("repo_id", help="owner/name")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", default=None, help="where the repository is made")
    visibility.add_argument("--public", dest="private", action="store_false", help="where the repository is made")
    parser.add_argument("--dry_run", action="store_true", help="show the plan, without the network")
    parser.add_argument("--report", nargs="+", default=[], type=Path, help="JSON files of results for the card")
    parser.add_argument("--model", help="what these reports call the model")
    parser.add_argument("--base_model", help="id on the hub, where the training did not know it")
    parser.add_argument("--license", help="identifier of the hub, such as mit")
    parser.add_argument("--include", nargs="+", default=[], help="patterns of further files, such as 'figures/*'")
    parser.add_argument("--revision", help="branch")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request")
    parser.add_argument("--commit_message", default="Upload")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    common = {name: getattr(args, name) for name in ("private", "dry_run", "revision", "create_pr", "commit_message")}
    if (args.folder / DATASETDICT_JSON_FILENAME).is_file():
        given = [name for name in ("report", "model", "base_model", "include") if getattr(args, name)]
        if given:
            raise ValueError(f"{args.folder} is a dataset; --{', --'.join(given)} are for models.")
        plan = push_dataset_to_hub(args.folder, args.repo_id, license=args.license, **common)
    else:
        for report in args.report:
            add_results(args.folder, report, args.model)
        if args.base_model or args.license or not (args.folder / CARD_NAME).is_file():
            write_model_card(args.folder, base_model=args.base_model, license=args.license)
        plan = push_to_hub(args.folder, args.repo_id, include=args.include, **common)
    if not args.dry_run:
        print(f"{plan}\nUploaded.")


if __name__ == "__main__":
    clean_errors(main)()
