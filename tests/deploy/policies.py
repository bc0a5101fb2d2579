"""policies.py compares deploy/iam/*.json and docs/existing-cluster.md with the roles of the CloudFormation template."""

import json
import pathlib
import re

from resolve import Stack

ROOT = pathlib.Path(__file__).parents[2]
QUEUE = "arn:aws:sqs:REGION:ACCOUNT_ID:QUEUE_NAME"
ATTRIBUTES = {
    "Queue.Arn": QUEUE,
    "DeadLetterQueue.Arn": f"{QUEUE}-dlq",
    "Key.Arn": "arn:aws:kms:REGION:ACCOUNT_ID:key/KEY_ID",
    "Bucket": "BUCKET_NAME",
}
# With all optional permissions.
EVERYTHING = {"UseKmsKey": "true", "CheckpointPrefix": "checkpoints/", "IdempotencyPrefix": "done/"}


def of_the_template(role):
    stack = Stack(ROOT / "deploy/cloudformation/leasehold.yaml", EVERYTHING, ATTRIBUTES)
    [policy] = stack.resource(role)["Policies"]
    for statement in policy["PolicyDocument"]["Statement"]:
        # A list with one element equals the element.
        if isinstance(statement["Resource"], list) and len(statement["Resource"]) == 1:
            [statement["Resource"]] = statement["Resource"]
    return policy["PolicyDocument"]


def of_a_file(name):
    return json.loads((ROOT / "deploy/iam" / name).read_text())


def grants(document):
    """Each action with each of its resources."""
    both = lambda one: one if isinstance(one, list) else [one]
    statements = document["Statement"]
    assert all(one["Effect"] == "Allow" for one in statements)
    return {(action, resource) for one in statements for action in both(one["Action"]) for resource in both(one["Resource"])}


assert of_a_file("worker.json") == of_the_template("WorkerRole")
assert of_a_file("keda.json") == of_the_template("KedaRole")

# The pods have no access to dead letters, and the operators no access to the work.
worker, operator = grants(of_a_file("worker.json")), grants(of_a_file("operator.json"))
assert not [action for action, resource in worker if "MoveTask" in action or resource == f"{QUEUE}-dlq"]
on_the_queue = {action for action, resource in operator if resource == QUEUE}
assert on_the_queue == {"sqs:GetQueueAttributes", "sqs:SendMessage"}, on_the_queue
assert all("*" not in action for action, _ in worker | operator)

# The page omits unused statements, and has its own names.
page = (ROOT / "docs/existing-cluster.md").read_text()
of_the_page = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]


def named(grants):
    names = {"REGION": "eu-central-1", "ACCOUNT_ID": "123456789012", "QUEUE_NAME": "orders", "BUCKET_NAME": "incoming"}
    for old, new in names.items():
        grants = {(action, resource.replace(old, new)) for action, resource in grants}
    return grants


needed = [one for one in of_a_file("worker.json")["Statement"] if one["Sid"] in ("Messages", "Objects", "MissingObjects")]
assert [grants(one) for one in of_the_page] == [named(grants({"Statement": needed})), named(grants(of_a_file("keda.json")))]
