"""Sums the amounts of a table, at the paths of a SageMaker processing job."""
import csv
import os

HOME = os.environ.get("PROCESSING_HOME", "/opt/ml/processing")

with open(f"{HOME}/input/orders.csv", encoding="utf-8", newline="") as file:
    total = sum(int(row["amount"]) for row in csv.DictReader(file))
with open(f"{HOME}/output/total.txt", "w", encoding="utf-8") as file:
    print(total, file=file)
