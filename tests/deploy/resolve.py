"""Evaluates CloudFormation's intrinsic functions, as far as deploy/cloudformation/leasehold.yaml uses them."""

import re

import yaml

from intrinsics import Loader

PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::Region": "REGION",
    "AWS::AccountId": "ACCOUNT_ID",
}


class Stack:
    """The template with these parameters. `attributes` has the attributes of resources."""

    def __init__(self, path, parameters, attributes):
        with open(path) as file:
            self.template = yaml.load(file, Loader)
        known = self.template["Parameters"]
        assert parameters.keys() <= known.keys(), parameters.keys() - known.keys()
        self.values = PSEUDO | {name: one.get("Default") for name, one in known.items()} | parameters
        self.attributes = attributes

    def resource(self, name):
        """The properties of a resource, or None if its condition is false."""
        resource = self.template["Resources"][name]
        if "Condition" in resource and not self.condition(resource["Condition"]):
            return None
        return self.value(resource["Properties"])

    def output(self, name):
        return self.value(self.template["Outputs"][name]["Value"])

    def condition(self, one):
        if isinstance(one, dict):
            one = one["Condition"]
        if isinstance(one, str):
            return self.condition(self.template["Conditions"][one])
        function, arguments = one
        match function:
            case "Equals":
                return self.value(arguments[0]) == self.value(arguments[1])
            case "Not":
                return not self.condition(arguments[0])
            case "And":
                return all(self.condition(argument) for argument in arguments)
            case "Or":
                return any(self.condition(argument) for argument in arguments)
        raise AssertionError(one)

    def value(self, one):
        if isinstance(one, dict):
            values = {key: self.value(value) for key, value in one.items()}
            return {key: value for key, value in values.items() if value is not None}
        if isinstance(one, list) and len(one) == 2 and isinstance(one[1], list) and one[0] in ("If", "Sub", "Select", "Split", "Join"):
            return self.function(*one)
        if isinstance(one, list):
            return [value for value in map(self.value, one) if value is not None]
        if isinstance(one, str):
            name, _, rest = one.partition(" ")
            if name == "Ref":
                return None if rest == "AWS::NoValue" else self.named(rest)
            if name == "GetAtt":
                return self.attributes[rest]
            if name == "Sub":
                return self.text(rest, {})
        return one

    def named(self, name):
        return self.values[name] if name in self.values else self.attributes[name]

    def text(self, text, more):
        return re.sub(r"\$\{([^}]+)\}", lambda found: str(more.get(found[1]) or self.named(found[1])), text)

    def function(self, name, arguments):
        match name:
            case "If":
                return self.value(arguments[1] if self.condition(arguments[0]) else arguments[2])
            case "Sub":
                return self.text(arguments[0], self.value(arguments[1]))
            case "Select":
                return self.value(arguments[1])[int(arguments[0])]
            case "Split":
                return self.value(arguments[1]).split(arguments[0])
            case "Join":
                return arguments[0].join(self.value(arguments[1]))
