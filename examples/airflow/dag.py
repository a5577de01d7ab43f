"""From Kafka to the warehouse every hour, with certificates and code that s3view mounts.

Two ways to start Spark from Airflow, a DAG for each; take one. Neither pod has an init container, and neither the DAG
nor Airflow's workers hold keys of the bucket: the kubelet hands them to the driver of s3view.

- `kafka_spark_adb_client`: KubernetesPodOperator. The pod is Spark's driver, and its executors take their
  volumes from a pod template that lies in the bucket beside the code.
- `kafka_spark_adb_operator`: SparkKubernetesOperator, with the manifest of ../seed beside this file. The
  code is pinned to the moment at which the run began: executors that start later run what the driver
  runs, and so does a retry, whatever was uploaded meanwhile.

What both create for one run is in rendered.yaml; examples/check compares.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

import yaml
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.operators.spark_kubernetes import SparkKubernetesOperator
from airflow.sdk import DAG
from kubernetes.client import models as k8s

NAMESPACE = "spark"
BUCKET = "kafka-certs-bucket"
MANIFEST = Path(os.environ.get("SPARK_APPLICATION", Path(__file__).with_name("sparkapplication.yaml")))
# Ten seconds before the run began: by then the second is over for S3's clock too.
MOMENT = "{{ (dag_run.start_date - macros.timedelta(seconds=10)).strftime('%Y-%m-%dT%H:%M:%SZ') }}"


def s3view(name: str, **attributes: str) -> k8s.V1Volume:
    """A volume that shows objects of the bucket; the attributes are those of docs/CONFIGURATION.md."""
    return k8s.V1Volume(
        name=name,
        csi=k8s.V1CSIVolumeSource(
            driver="csi.s3view.dev",
            read_only=True,
            node_publish_secret_ref=k8s.V1LocalObjectReference(name="s3-credentials"),
            volume_attributes={"bucket": BUCKET, **attributes},
        ),
    )


def secret(variable: str, name: str, key: str) -> k8s.V1EnvVar:
    """A variable out of a Secret."""
    selector = k8s.V1SecretKeySelector(name=name, key=key)
    return k8s.V1EnvVar(name=variable, value_from=k8s.V1EnvVarSource(secret_key_ref=selector))


def pinned(manifest: dict, moment: str) -> dict:
    """The manifest with its code as it was at a moment."""
    for volume in manifest["spec"]["volumes"]:
        if volume["name"] == "spark-app":
            attributes = volume["csi"]["volumeAttributes"]
            # A moment does not change: there is nothing to refresh.
            attributes.pop("refresh", None)
            attributes["asOf"] = moment
    return manifest


JOB = ["--bootstrap-servers", "kafka.kafka:9093", "--topic", "events", "--table", "staging.events"]

SUBMIT = """\
exec /opt/spark/bin/spark-submit \\
    --master k8s://https://kubernetes.default.svc --deploy-mode client \\
    --conf spark.kubernetes.namespace=spark \\
    --conf spark.kubernetes.container.image=apache/spark:3.5.1-python3 \\
    --conf spark.kubernetes.executor.podTemplateFile=/opt/spark/app/pod-template.yaml \\
    --conf spark.kubernetes.driver.pod.name="$POD_NAME" \\
    --conf spark.driver.host="$POD_IP" \\
    --conf "spark.driver.extraClassPath=/opt/spark/app/jars/*" \\
    --conf "spark.executor.extraClassPath=/opt/spark/app/jars/*" \\
    --conf spark.executor.instances=2 \\
    /opt/spark/app/sparkapp.py "$@"
"""


def field(variable: str, path: str) -> k8s.V1EnvVar:
    """A variable out of the pod itself."""
    selector = k8s.V1ObjectFieldSelector(field_path=path)
    return k8s.V1EnvVar(name=variable, value_from=k8s.V1EnvVarSource(field_ref=selector))


SETTINGS = {
    "schedule": "@hourly",
    "start_date": datetime(2026, 1, 1),
    "catchup": False,
    # Two runs at one time would write the same offsets.
    "max_active_runs": 1,
    "is_paused_upon_creation": True,
    "default_args": {"retries": 2, "retry_delay": timedelta(minutes=5)},
    "tags": ["kafka", "spark"],
}

with DAG(dag_id="kafka_spark_adb_client", **SETTINGS):
    KubernetesPodOperator(
        task_id="load",
        name="kafka-spark-adb",
        namespace=NAMESPACE,
        image="apache/spark:3.5.1-python3",
        cmds=["/bin/bash", "-ec", SUBMIT, "spark-submit"],
        arguments=JOB,
        service_account_name="spark",
        security_context=k8s.V1PodSecurityContext(
            run_as_non_root=True, run_as_user=185, run_as_group=185, fs_group=185
        ),
        env_vars=[
            field("POD_NAME", "metadata.name"),
            field("POD_IP", "status.podIP"),
            secret("KEYSTORE_PASSWORD", "kafka-ssl-passwords", "keystore-password"),
            secret("TRUSTSTORE_PASSWORD", "kafka-ssl-passwords", "truststore-password"),
            secret("ADB_URL", "adb-credentials", "url"),
            secret("ADB_USER", "adb-credentials", "user"),
            secret("ADB_PASSWORD", "adb-credentials", "password"),
        ],
        volumes=[
            s3view("kafka-certs", prefix="certs/", uid="185", fileMode="0400", settle="5s"),
            s3view("spark-app", prefix="apps/", view="disk", refresh="never"),
            k8s.V1Volume(
                name="checkpoint",
                persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(claim_name="kafka-spark-adb"),
            ),
        ],
        volume_mounts=[
            k8s.V1VolumeMount(name="kafka-certs", mount_path="/etc/kafka/ssl"),
            k8s.V1VolumeMount(name="spark-app", mount_path="/opt/spark/app"),
            k8s.V1VolumeMount(name="checkpoint", mount_path="/var/lib/kafka-spark-adb"),
        ],
        # The pod's events say why a volume cannot be mounted.
        log_events_on_failure=True,
        startup_timeout_seconds=300,
        on_finish_action="delete_pod",
    )

with DAG(dag_id="kafka_spark_adb_operator", **SETTINGS):
    SparkKubernetesOperator(
        task_id="load",
        namespace=NAMESPACE,
        template_spec=pinned(yaml.safe_load(MANIFEST.read_text()), MOMENT),
        log_events_on_failure=True,
    )
