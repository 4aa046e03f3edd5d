"""Turn a local copy of a benchmark into candidates and judgements.

    python jobs/prepare_benchmark.py jqara --source JQaRA/ --output prepared/jqara/
    python jobs/prepare_benchmark.py beir --source scifact/ --output prepared/scifact/ --depth 50

docs/benchmarks.md shows what each copy looks like, and how to run models over the result. Writes
OUTPUT/candidates.parquet and OUTPUT/qrels.parquet; the last line of stdout is JSON with counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from rankmill.errors import RankmillError
from rankmill.recipes import BENCHMARKS, prepare


def main() -> None:
    """Read the arguments, prepare, print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(BENCHMARKS))
    parser.add_argument("--source", required=True, help="a local copy in its public layout")
    parser.add_argument("--output", required=True, help="folder for the two files")
    parser.add_argument("--split", help="another part of the benchmark than figures are given for")
    parser.add_argument("--depth", type=int, help="candidates a query")
    parser.add_argument("--run", help="a TREC run that has the candidates")
    options = vars(parser.parse_args())
    try:
        prepared = prepare(**options)
    except RankmillError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(json.dumps(asdict(prepared)))


if __name__ == "__main__":
    main()
