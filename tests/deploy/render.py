"""render.py CHART reads [{name, namespace, values}] from standard input, and prints the rendered files of each, {file: text}, or Helm's error."""

import json
import sys

import helm_python as helm


def rendered(release):
    try:
        return {"Ok": chart.render(release["values"], name=release["name"], namespace=release["namespace"])}
    except helm.HelmError as error:
        return {"Err": str(error)}


chart = helm.Chart.load(sys.argv[1])
releases = json.load(sys.stdin)
report = helm.lint(sys.argv[1], releases[0]["values"], strict=True)
print(json.dumps({"lint": report["messages"], "rendered": [rendered(release) for release in releases]}))
