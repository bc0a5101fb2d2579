"""template.py TEMPLATE checks what CloudFormation emulators do not: the accepted parameters, and the policies of queues and bucket."""

import re
import sys

import yaml

from intrinsics import Loader
from resolve import Stack

GOOD = {
    "Name": ["leasehold", "a1-b"],
    "Prefix": ["in/", "a/b=1/c_d/"],
    "Suffix": ["", ".csv", "_v1.tar.gz"],
    "ExistingBucket": ["", "incoming", "my.bucket-1"],
    "ExistingQueueArn": ["", "arn:aws:sqs:eu-central-1:123456789012:orders", "arn:aws-cn:sqs:cn-north-1:123456789012:a_b.fifo"],
    "ExistingKeyArn": ["", "arn:aws:kms:eu-central-1:123456789012:key/0123abcd-0000-0000-0000-000000000000"],
    "OutputPrefix": ["", "out/"],
    "AttemptsPrefix": ["", "a/"],
    "CheckpointPrefix": ["", "c/"],
    "IdempotencyPrefix": ["", "i/"],
    "ClusterName": ["", "My_cluster-1"],
    "OidcProvider": ["", "oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF", "oidc.eks.cn-north-1.amazonaws.com.cn/id/0AF"],
    "Namespace": ["leasehold", "a"],
    "ServiceAccount": ["leasehold", "a.b-c"],
    "KedaNamespace": ["keda"],
    "KedaServiceAccount": ["keda-operator"],
    "AlarmTopicArn": ["", "arn:aws:sns:eu-central-1:123456789012:alarms", "arn:aws-us-gov:sns:us-gov-west-1:123456789012:a"],
}

# Values that are more than a name in a text, or a pattern in an ARN.
BAD = ['a"b', "a*", "a?b", "a b", "${AWS::AccountId}", "a\\b", 'x"}],"Condition":{', "a\nb", "ü", "a{b}", "//"]


def check_parameters(parameters):
    assert {name for name, one in parameters.items() if one["Type"] == "String" and "AllowedValues" not in one} == set(GOOD)
    for name, values in GOOD.items():
        pattern, most = parameters[name]["AllowedPattern"], parameters[name]["MaxLength"]
        assert pattern.startswith("^") and pattern.endswith("$"), name
        for value in values:
            assert re.search(pattern, value) and len(value) <= most, (name, value)
        for value in BAD:
            value += "/" if name.endswith("Prefix") else ""
            assert not re.search(pattern, value), (name, value)
    for name, parameter in parameters.items():
        if parameter["Type"] == "Number":
            assert parameter["MinValue"] < parameter["MaxValue"], name


def check_tls(resources):
    bucket = "Sub arn:${AWS::Partition}:s3:::${Name}-${AWS::AccountId}-${AWS::Region}"
    for policy, whose, action, resource in [
        ("QueuePolicy", {"Queues": ["Ref Queue"]}, "sqs:*", "GetAtt Queue.Arn"),
        ("DeadLetterQueuePolicy", {"Queues": ["Ref DeadLetterQueue"]}, "sqs:*", "GetAtt DeadLetterQueue.Arn"),
        ("BucketPolicy", {"Bucket": "Ref Bucket"}, "s3:*", [bucket, f"{bucket}/*"]),
    ]:
        properties = resources[policy]["Properties"]
        assert whose.items() <= properties.items(), policy
        statements = [one for one in properties["PolicyDocument"]["Statement"] if isinstance(one, dict)]
        denied = [one for one in statements if one["Effect"] == "Deny"]
        condition = {"Bool": {"aws:SecureTransport": "false"}}
        of_all = {"Sid": "TlsOnly", "Effect": "Deny", "Principal": "*", "Action": action, "Resource": resource, "Condition": condition}
        assert denied == [of_all], (policy, denied)


class Named(dict):
    """Attributes that CloudFormation knows only after a resource is created."""

    def __missing__(self, name):
        return f"<{name}>"


def check_resources(path, resources):
    queue = {"Queue", "DeadLetterQueue", "QueuePolicy", "DeadLetterQueuePolicy", "DeadLetterAlarm"}
    bucket = {"Bucket", "BucketPolicy"}
    always = {"WorkerRole", "KedaRole", "AgeAlarm"}
    bucket_is_there = {"ExistingBucket": "incoming"}
    queue_is_there = {"ExistingQueueArn": "arn:aws:sqs:REGION:ACCOUNT_ID:orders"}
    for parameters, made, sender in [
        ({}, queue | bucket, "s3"),
        ({"Fifo": "true"}, queue | bucket | {"ObjectsRule"}, "events"),
        (bucket_is_there, queue | {"ObjectsRule"}, "events"),
        (bucket_is_there | {"Fifo": "true"}, queue | {"ObjectsRule"}, "events"),
        (queue_is_there, bucket, None),
        (bucket_is_there | queue_is_there, set(), None),
    ]:
        stack = Stack(path, parameters, Named())
        found = {name for name in resources if stack.resource(name) is not None}
        assert found == made | always, (parameters, found ^ (made | always))
        if sender:
            statements = stack.resource("QueuePolicy")["PolicyDocument"]["Statement"]
            allowed = [one["Principal"] for one in statements if one["Effect"] == "Allow"]
            assert allowed == [{"Service": f"{sender}.amazonaws.com"}], (parameters, allowed)
        url = stack.output("QueueUrl")
        assert url == ("https://sqs.REGION.amazonaws.com/ACCOUNT_ID/orders" if "ExistingQueueArn" in parameters else "<Queue>"), url


with open(sys.argv[1]) as file:
    template = yaml.load(file, Loader)
check_parameters(template["Parameters"])
check_tls(template["Resources"])
check_resources(sys.argv[1], template["Resources"])
