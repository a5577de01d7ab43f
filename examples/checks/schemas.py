"""The schemas that manifests are held to. Unknown fields are errors, as for kubectl apply."""

import functools

import jsonschema
import kubernetes_validate
import yaml

# The oldest release with everything that the examples use, one in between, and the newest known.
VERSIONS = ["1.30", "1.34", kubernetes_validate.latest_version()]


class Bad(Exception):
    """A manifest that an API server would refuse."""


def check(document, crd, versions=VERSIONS):
    """Holds a document of any kind to its schemas."""
    if document["kind"] == "SparkApplication":
        check_spark(document, crd, versions)
        return
    for version in versions:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(str(step) for step in error.path)
            raise Bad(f"{document['kind']}, Kubernetes {version}: {path}: {error.message}") from None


def check_spark(document, crd, versions):
    """A SparkApplication, and the pod templates in it, which the operator does not look at."""
    errors = sorted(spark_validator(crd).iter_errors(document), key=lambda error: list(error.path))
    if errors:
        path = ".".join(str(step) for step in errors[0].path)
        raise Bad(f"SparkApplication: {path}: {errors[0].message}")
    for role in ("driver", "executor"):
        template = document["spec"][role].get("template")
        if template:
            check({"apiVersion": "v1", "kind": "PodTemplate", "template": template}, crd, versions)


@functools.cache
def spark_validator(crd):
    with open(crd) as file:
        versions = yaml.load(file, yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (it["schema"]["openAPIV3Schema"] for it in versions if it["name"] == "v1beta2")
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(strict(schema))


def strict(schema):
    """The structural schema as JSON Schema, with no room for fields that it does not name."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    changed = dict(schema)
    if "properties" in schema:
        changed["properties"] = {name: strict(it) for name, it in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            changed.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(changed.get(name), dict):
            changed[name] = strict(changed[name])
    return changed
