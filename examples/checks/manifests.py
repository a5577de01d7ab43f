"""Every manifest of examples/ is one that an API server takes; a mistake in any would be found."""

import copy
import json
import pathlib
import sys

import jsonschema
import yaml
from schemas import VERSIONS, Bad, check

ROOT = pathlib.Path(__file__).parent.parent


def misspelt(document):
    """Copies of a document, each with another field misspelt: one on every level of every branch."""
    places = []

    def walk(value, path):
        if isinstance(value, dict):
            # Labels, attributes, data: maps whose keys are free.
            free = path and path[-1] in FREE
            for name, child in value.items():
                if not free and path:
                    places.append((path, name))
                walk(child, path + [name])
        elif isinstance(value, list):
            for number, child in enumerate(value):
                walk(child, path + [number])

    walk(document, [])
    for path, name in places:
        changed = copy.deepcopy(document)
        parent = changed
        for step in path:
            parent = parent[step]
        parent[name + "x"] = parent.pop(name)
        yield ".".join(map(str, path + [name])), changed


FREE = {
    "labels", "annotations", "matchLabels", "selector", "volumeAttributes", "parameters", "data",
    "stringData", "sparkConf", "requests", "limits", "capacity", "metadata",
}  # fmt: skip


def check_values():
    """Values of the chart are held to the schema that Helm holds them to."""
    schema = ROOT.parent / "deploy" / "helm" / "s3view" / "values.schema.json"
    if not schema.exists():
        print("SKIPPED: values of the chart, which is not here")
        return
    schema = json.loads(schema.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    found = list(ROOT.glob("values/*.yaml"))
    assert len(found) == 2, found
    for path in found:
        values = yaml.safe_load(path.read_text())
        validator.validate(values)
        for field, changed in misspelt({"": values}):
            # What stands below config is for the driver to judge.
            assert ".config." in field or not validator.is_valid(changed[""]), f"{path}: {field}"
    print(f"ok: {len(found)} files of values for the chart")


def main(crd):
    documents = [
        (path.relative_to(ROOT), document)
        for path in sorted(ROOT.glob("*/*.yaml"))
        if path.parent.name != "values"
        for document in yaml.safe_load_all(path.read_text())
    ]
    assert len(documents) > 20, "the examples are found no more"
    for path, document in documents:
        try:
            check(document, crd)
        except Bad as error:
            sys.exit(f"examples/{path}: {error}")
    found = 0
    for path, document in documents:
        for field, changed in misspelt(document):
            try:
                check(changed, crd, VERSIONS[-1:])
            except Bad:
                found += 1
            else:
                sys.exit(f"examples/{path}: {field} may be misspelt, and nobody would say so")
    print(f"ok: {len(documents)} manifests for Kubernetes {', '.join(VERSIONS)}; {found} typos are found")
    check_values()


if __name__ == "__main__":
    main(*sys.argv[1:])
