"""Imports orders into a service with a rate limit, and reports its progress.

The service is a stand-in: it refuses the first attempt at a file with more than four orders, as a rate limit would.
"""

import csv
import json
import os
import sys

LATER = 75


class RateLimited(Exception):
    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the service takes no more orders for {retry_after:g} s")
        self.retry_after = retry_after


def send(number: int, order: dict[str, str]) -> None:
    if number > 4 and os.environ["JOB_RECEIVE_COUNT"] == "1":
        raise RateLimited(retry_after=1)
    # The key makes it safe to send an order twice.
    print(f"order {os.environ['JOB_KEY']}#{number}: {order['customer']}, {order['amount']}")


def report(**values: object) -> None:
    with open(os.environ["JOB_RESULT_FILE"], "a", encoding="utf-8") as result:
        result.write(json.dumps(values) + "\n")


def main() -> int:
    with open(os.environ["JOB_INPUT"], newline="", encoding="utf-8") as file:
        orders = list(csv.DictReader(file))
    for number, order in enumerate(orders, start=1):
        try:
            send(number, order)
        except RateLimited as error:
            report(reason=str(error), retry_after=error.retry_after)
            return LATER
        report(progress=number / len(orders), text=f"order {number} of {len(orders)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
