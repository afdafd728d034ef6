"""Prints the instructions of a container file as JSON, read by the parser that builds are made with."""

import json
import sys

import dockerfile

instructions = dockerfile.parse_file(sys.argv[1])
print(json.dumps([[each.cmd, list(each.flags), list(each.value)] for each in instructions]))
