"""Sums a day's orders by currency: an ordinary program without a queue.

It reads the file that JOB_INPUT names, and writes its result into JOB_OUTPUT_DIR. Its exit codes are 0 for a
success, 65 for a permanent failure, and 75 for a temporary one.
"""

import csv
import json
import os
import sys
from collections import defaultdict
from decimal import Decimal, InvalidOperation
from pathlib import Path

NEVER, LATER = 65, 75


def main() -> int:
    totals: dict[str, Decimal] = defaultdict(Decimal)
    with open(os.environ["JOB_INPUT"], newline="", encoding="utf-8") as orders:
        for number, order in enumerate(csv.DictReader(orders), start=2):
            try:
                totals[order["currency"]] += Decimal(order["amount"])
            except (KeyError, InvalidOperation):
                return give_up(NEVER, f"line {number} is not an order")

    # This simulates a service that is down: yen have no rate until the second attempt.
    if "JPY" in totals and os.environ["JOB_RECEIVE_COUNT"] == "1":
        return give_up(LATER, "the rate of JPY is not known yet", retry_after="1s")

    result = Path(os.environ["JOB_OUTPUT_DIR"], "totals.json")
    result.write_text(json.dumps({currency: str(total) for currency, total in sorted(totals.items())}, indent=2))
    print(f"{os.environ['JOB_KEY']}: {len(totals)} currencies")
    return 0


def give_up(code: int, reason: str, **more: str) -> int:
    print(reason, file=sys.stderr)
    with open(os.environ["JOB_RESULT_FILE"], "a", encoding="utf-8") as result:
        result.write(json.dumps({"reason": reason, **more}) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
