"""Every manifest of examples/ is one that an API server takes; a mistake in any would be found."""

import copy
import pathlib
import sys

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


def main(crd):
    documents = [
        (path.relative_to(ROOT), document)
        for path in sorted(ROOT.glob("*/*.yaml"))
        if path.parent.name != "config"
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


if __name__ == "__main__":
    main(*sys.argv[1:])
