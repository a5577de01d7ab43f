"""Holds Kubernetes manifests to the schemas of one version: conforms.py VERSION FILE...

Unknown fields, double keys and unknown kinds are errors. So is what an API server or a kubelet would
refuse though each object by itself is well formed: a selector that does not select its own pods, a
reference to nothing, Bidirectional propagation without privileges.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

SCHEMAS = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"

# Made by Kubernetes in every namespace.
CLUSTER_CA = "kube-root-ca.crt"


class Loader(yaml.SafeLoader):
    """Refuses a key that is there twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        double = {key for key in keys if keys.count(key) > 1}
        if double:
            raise yaml.constructor.ConstructorError(
                None, None, f"keys that are there twice: {double}", node.start_mark
            )
        return super().construct_mapping(node, deep)


class Schemas:
    """The schemas of one version of Kubernetes, and of the Prometheus operator."""

    def __init__(self, version):
        major, minor = version.split(".")[:2]
        self.directory = SCHEMAS / f"v{major}.{minor}.0-local-strict"
        definitions = self._read("_definitions.json")
        self.registry = Resource.from_contents(definitions) @ Registry()

    def _read(self, name):
        return json.loads((self.directory / name).read_text())

    def problems(self, it):
        """What is wrong with one object."""
        kind, version = it["kind"], it["apiVersion"]
        if version == "monitoring.coreos.com/v1" and kind == "PodMonitor":
            schema, registry = pod_monitor(), Registry()
        else:
            group, _, number = version.rpartition("/")
            name = "-".join(filter(None, [kind.lower(), group.split(".")[0], number])) + ".json"
            try:
                schema = self._read(name)
            except FileNotFoundError:
                return [f"no such kind: {version} {kind}"]
            registry = Resource.from_contents(schema) @ self.registry
        validator = jsonschema.Draft202012Validator(schema, registry=registry)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(it)]


def pod_monitor():
    """The operator's schema as a package has it, closed to unknown fields."""
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor

    def close(part):
        if isinstance(part, dict):
            if "properties" in part:
                part.setdefault("additionalProperties", False)
            part = list(part.values())
        if isinstance(part, list):
            for inner in part:
                close(inner)

    schema = PodMonitor.model_json_schema(by_alias=True)
    close(schema)
    return schema


def loose_ends(objects):
    """References between objects that lead nowhere."""
    known = {(it["kind"], it["metadata"].get("namespace"), it["metadata"]["name"]) for it in objects}
    for it in objects:
        name, namespace = it["metadata"]["name"], it["metadata"].get("namespace")

        def refers(kind, to, where=namespace):
            if (kind, where, to) not in known:
                yield f"{name}: there is no {kind} {to}"

        if "roleRef" in it:
            role = it["roleRef"]
            yield from refers(role["kind"], role["name"], namespace if role["kind"] == "Role" else None)
            for subject in it["subjects"]:
                yield from refers("ServiceAccount", subject["name"], subject["namespace"])
        pod = it.get("spec", {}).get("template")
        if pod:
            yield from pod_problems(name, it["spec"]["selector"]["matchLabels"], pod)
            account = pod["spec"]["serviceAccountName"]
            if account != "default":
                yield from refers("ServiceAccount", account)
            for volume in pod["spec"]["volumes"]:
                for source in volume.get("projected", {}).get("sources", []):
                    config = source.get("configMap", {"name": CLUSTER_CA})["name"]
                    if config != CLUSTER_CA:
                        yield from refers("ConfigMap", config)


def pod_problems(name, selected, pod):
    """What the API server and the kubelet would refuse of a pod."""
    labels = pod["metadata"]["labels"]
    if not selected.items() <= labels.items():
        yield f"{name}: the selector does not select its own pods"
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    for container in pod["spec"]["containers"]:
        where = f"{name}/{container['name']}"
        ports = {port["name"] for port in container.get("ports", [])}
        mounts = container.get("volumeMounts", [])
        privileged = container["securityContext"].get("privileged", False)
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"{where}: there is no volume {mount['name']}"
            if mount.get("mountPropagation") == "Bidirectional" and not privileged:
                yield f"{where}: Bidirectional needs a privileged container"
        paths = [mount["mountPath"] for mount in mounts]
        if len(paths) != len(set(paths)):
            yield f"{where}: two mounts at one path"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if isinstance(port, str) and port not in ports:
                yield f"{where}: {probe} asks a port {port} that the container does not name"


def main(version, *files):
    schemas = Schemas(version)
    wrong = 0
    for file in files:
        with open(file, encoding="utf-8") as text:
            objects = [it for it in yaml.load_all(text, Loader) if it]
        problems = [
            f"{it['kind']} {it['metadata']['name']}: {problem}"
            for it in objects
            for problem in schemas.problems(it)
        ]
        problems += loose_ends(objects)
        for problem in problems:
            print(f"{file}: {problem}")
        wrong += len(problems)
        print(f"{pathlib.Path(file).name}: {len(objects)} objects, {len(problems)} problems")
        if not objects:
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
