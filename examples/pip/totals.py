"""Sums the amounts of a YAML file; an ordinary program with a dependency from pip."""

import os
import sys
from pathlib import Path

import yaml

try:
    orders = yaml.safe_load(Path(os.environ["JOB_INPUT"]).read_text(encoding="utf-8"))
    total = sum(order["amount"] for order in orders)
except (yaml.YAMLError, KeyError, TypeError) as error:
    print(f"this is not a list of orders: {error}", file=sys.stderr)
    sys.exit(65)
Path(os.environ["JOB_OUTPUT_DIR"], "total.txt").write_text(f"{total}\n", encoding="utf-8")
