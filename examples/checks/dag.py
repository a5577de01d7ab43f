"""The DAG is one that a real Airflow takes, and creates what rendered.yaml has.

    dag.py CRD [--write]       --write replaces rendered.yaml
"""

import datetime
import os
import pathlib
import sys
import tempfile
import types

HERE = pathlib.Path(__file__).parent
DAG_FILE = HERE.parent / "airflow" / "dag.py"
RENDERED = HERE.parent / "airflow" / "rendered.yaml"
HEAD = """\
# What dag.py creates for the run that began at 2026-01-31T12:00:10Z: the pod of its first DAG, and the
# SparkApplication of its second. Written by examples/check --write, which else compares.
"""

# A cluster that is never called: the operators want to know which one it would be.
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: none, user: {}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
current-context: none
"""


def settle(home):
    """An Airflow of its own, before it is imported."""
    (home / "kubeconfig").write_text(KUBECONFIG)
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": '{"conn_type": "kubernetes"}',
        "KUBECONFIG": str(home / "kubeconfig"),
        "SPARK_APPLICATION": str(HERE.parent / "seed" / "sparkapplication.yaml"),
    }


def dags():
    """The DAGs of the file, as the DAG processor finds them."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(DAG_FILE))
    assert not bag.import_errors, bag.import_errors
    assert sorted(bag.dags) == ["kafka_spark_adb_client", "kafka_spark_adb_operator"], bag.dags
    return bag.dags


def rendered(dag):
    """The only task of a DAG, as a worker would run it."""
    from airflow.sdk.execution_time import macros

    (task,) = dag.tasks
    began = datetime.datetime(2026, 1, 31, 12, 0, 10, tzinfo=datetime.timezone.utc)
    task.render_template_fields({"dag_run": types.SimpleNamespace(start_date=began), "macros": macros})
    return task


def without_chance(document):
    """What is the same for each run and each release of Airflow."""
    document["metadata"] = {
        "name": "kafka-spark-adb",
        "namespace": document["metadata"]["namespace"],
    }
    return document


def main(crd, *flags):
    with tempfile.TemporaryDirectory() as home:
        settle(pathlib.Path(home))
        import yaml
        from kubernetes.client import ApiClient
        from schemas import check

        found = dags()
        pod = rendered(found["kafka_spark_adb_client"]).build_pod_request_obj()
        application = rendered(found["kafka_spark_adb_operator"]).template_body["spark"]
        documents = [without_chance(ApiClient().sanitize_for_serialization(pod)), without_chance(application)]
        for document in documents:
            check(document, crd)
        text = HEAD + yaml.safe_dump_all(documents, sort_keys=True, width=100)
        if "--write" in flags:
            RENDERED.write_text(text)
        elif RENDERED.read_text() != text:
            sys.exit(f"{RENDERED} is not what dag.py creates; examples/check --write replaces it")
        print("ok: two DAGs in a real Airflow, and what they create")


if __name__ == "__main__":
    main(*sys.argv[1:])
