"""CloudFormation's intrinsic functions in YAML."""

import yaml


class Loader(yaml.SafeLoader):
    """Reads `!Ref Name` as "Ref Name"."""


def function(loader, name, node):
    if isinstance(node, yaml.ScalarNode):
        return f"{name} {node.value}"
    return [name, loader.construct_sequence(node, deep=True)]


Loader.add_multi_constructor("!", function)
