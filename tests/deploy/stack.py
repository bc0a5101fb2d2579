"""stack.py ENDPOINT PARAMETER=VALUE... deploys deploy/cloudformation/leasehold.yaml and prints the stack as JSON."""

import ast
import json
import pathlib
import sys

import boto3

from resolve import Stack

TEMPLATE = pathlib.Path(__file__).parents[2] / "deploy/cloudformation/leasehold.yaml"
REGION = "us-east-1"


def client(service):
    return boto3.client(
        service, endpoint_url=sys.argv[1], region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test"
    )


def deploy(parameters):
    parameters = dict(parameter.split("=", 1) for parameter in parameters)
    create_existing_resources(parameters)
    cloudformation = client("cloudformation")
    cloudformation.create_stack(
        StackName="leasehold",
        TemplateBody=TEMPLATE.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    stack = cloudformation.describe_stacks(StackName="leasehold")["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    finish_bucket(outputs, parameters)
    print(json.dumps({"outputs": outputs, "worker": role(outputs["WorkerRoleArn"]), "keda": role(outputs["KedaRoleArn"])}))


def role(arn):
    credentials = client("sts").assume_role(RoleArn=arn, RoleSessionName="pod")["Credentials"]
    name = arn.split("/")[-1]
    iam = client("iam")
    policy = iam.list_role_policies(RoleName=name)["PolicyNames"][0]
    # Moto's CloudFormation writes a policy in Python syntax, which its IAM cannot read.
    document = ast.literal_eval(iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"])
    document["Statement"] = [statement for statement in document["Statement"] if statement]
    iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=json.dumps(document))
    return {
        "name": name,
        "policy": policy,
        "document": document,
        "trust": iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"],
        "credentials": {
            "AWS_ACCESS_KEY_ID": credentials["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
            "AWS_SESSION_TOKEN": credentials["SessionToken"],
        },
    }


def finish_bucket(outputs, parameters):
    """Moto's CloudFormation ignores a bucket's notifications and versions: set them as in the template."""
    attributes = {"QueuePolicy": "policy"}
    if "ExistingQueueArn" not in parameters:
        queue = client("sqs").get_queue_attributes(QueueUrl=outputs["QueueUrl"], AttributeNames=["QueueArn"])
        attributes["Queue.Arn"] = queue["Attributes"]["QueueArn"]
    bucket = Stack(TEMPLATE, parameters, attributes).resource("Bucket")
    if bucket is None:
        return
    client("s3").put_bucket_versioning(
        Bucket=outputs["BucketName"], VersioningConfiguration=bucket["VersioningConfiguration"]
    )
    wanted = bucket["NotificationConfiguration"]
    configuration = {"EventBridgeConfiguration": {}} if "EventBridgeConfiguration" in wanted else {"QueueConfigurations": [{
        "Events": [one["Event"]],
        "QueueArn": one["Queue"],
        "Filter": {"Key": {"FilterRules": one["Filter"]["S3Key"]["Rules"]}},
    } for one in wanted["QueueConfigurations"]]}
    client("s3").put_bucket_notification_configuration(
        Bucket=outputs["BucketName"], NotificationConfiguration=configuration
    )


def create_existing_resources(parameters):
    if "ExistingBucket" in parameters:
        client("s3").create_bucket(Bucket=parameters["ExistingBucket"])
    if "ExistingQueueArn" in parameters:
        client("sqs").create_queue(QueueName=parameters["ExistingQueueArn"].split(":")[-1])


deploy(sys.argv[2:])
