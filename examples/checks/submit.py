"""A real spark-submit makes the pods that the examples promise: it is run against an API server that
only listens, and what it would create is looked at."""

import http.server
import json
import os
import pathlib
import subprocess
import tempfile
import threading

import pyspark
from schemas import check

EXAMPLES = pathlib.Path(__file__).parent.parent
SUBMIT = pathlib.Path(pyspark.__file__).parent / "bin" / "spark-submit"


class Listener(http.server.BaseHTTPRequestHandler):
    """Takes everything, and says what an API server says."""

    created = []

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.created.append(sent)
        sent["metadata"] |= {"uid": f"uid-{len(self.created)}", "resourceVersion": "1"}
        self.answer(201, sent)

    def do_PATCH(self):
        self.do_POST()

    def do_PUT(self):
        self.do_POST()

    def do_GET(self):
        self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def answer(self, code, content):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def driver_pod(command, **environment):
    """The driver's pod of a submission."""
    Listener.created = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        pathlib.Path(home, "kubeconfig").write_text('{"apiVersion": "v1", "kind": "Config"}')
        variables = os.environ | {"KUBECONFIG": f"{home}/kubeconfig", "SPARK_LOCAL_IP": "127.0.0.1"}
        variables |= {"MASTER": f"k8s://http://127.0.0.1:{server.server_port}"} | environment
        done = subprocess.run(
            [*command, "--conf", "spark.kubernetes.submission.waitAppCompletion=false"],
            env=variables, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    server.shutdown()
    pods = [it for it in Listener.created if it["kind"] == "Pod"]
    assert pods, f"spark-submit made no pod:\n{done.stdout}\n{done.stderr}"
    pod = pods[0]
    for name in ("uid", "resourceVersion"):
        del pod["metadata"][name]
    check(pod, None)
    return pod["spec"]


def mounts(spec):
    """What the container sees: path, and whether it may write."""
    (container,) = (it for it in spec["containers"] if it["name"].startswith("spark"))
    return {it["mountPath"]: (it["name"], it.get("readOnly", False)) for it in container["volumeMounts"]}


def volumes(spec):
    return {volume["name"]: volume for volume in spec["volumes"]}


def claims():
    """spark-submit.sh: two claims of s3view, which the driver mounts read-only."""
    spec = driver_pod([EXAMPLES / "seed" / "spark-submit.sh"], SPARK_SUBMIT=str(SUBMIT))
    seen = mounts(spec)
    assert seen["/etc/kafka/ssl"] == ("kafka-certs", True), seen
    assert seen["/opt/spark/app"] == ("spark-app", True), seen
    assert seen["/var/lib/kafka-spark-adb"][1] is False, seen
    for name, claim in (("kafka-certs", "certs"), ("spark-app", "apps")):
        found = volumes(spec)[name]["persistentVolumeClaim"]
        assert found == {"claimName": claim, "readOnly": True}, found
    (container,) = spec["containers"]
    variables = {it["name"]: it["valueFrom"]["secretKeyRef"] for it in container["env"] if "valueFrom" in it and "secretKeyRef" in it["valueFrom"]}
    assert variables["KEYSTORE_PASSWORD"] == {"name": "kafka-ssl-passwords", "key": "keystore-password"}
    assert len(variables) == 5, variables
    print("ok: spark-submit.sh mounts both claims")


def template():
    """pod-template.yaml: inline volumes, which spark-submit itself has no setting for."""
    pod_template = EXAMPLES / "spark" / "pod-template.yaml"
    command = [
        SUBMIT, "--deploy-mode", "cluster", "--name", "template",
        "--conf", "spark.kubernetes.namespace=spark",
        "--conf", "spark.kubernetes.container.image=apache/spark:3.5.1-python3",
        "--conf", f"spark.kubernetes.driver.podTemplateFile={pod_template}",
    ]  # fmt: skip
    command = ["/bin/sh", "-c", 'exec "$0" --master "$MASTER" "$@" local:///opt/spark/app/sparkapp.py', *command]
    spec = driver_pod(command)
    seen = mounts(spec)
    assert seen["/etc/kafka/ssl"][0] == "kafka-certs", seen
    assert seen["/opt/spark/app"][0] == "spark-app", seen
    certificates = volumes(spec)["kafka-certs"]["csi"]
    assert certificates["driver"] == "csi.s3view.dev" and certificates["readOnly"], certificates
    assert certificates["volumeAttributes"]["fileMode"] == "0400", certificates
    assert spec["securityContext"]["fsGroup"] == 185, spec["securityContext"]
    print("ok: spark-submit keeps the inline volumes of pod-template.yaml")


if __name__ == "__main__":
    claims()
    template()
