"""Reads a file of metrics with Prometheus's own client, and prints how many samples there are."""

import sys

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client import parser as text

parser = {"text": text, "openmetrics": openmetrics}[sys.argv[1]]
with open(sys.argv[2], encoding="utf-8") as file:
    families = list(parser.text_string_to_metric_families(file.read()))
assert all(family.documentation and family.type != "unknown" for family in families), families
assert all(family.name.startswith("weir_") for family in families), families
print(sum(len(family.samples) for family in families))
