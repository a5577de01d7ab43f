"""The Spark application from end to end: a real Kafka that lets in whoever shows a certificate, a real
PySpark, and a table. Only the mount is missing, which tests/it/seed.rs has.

    kafka.py JARS              JARS has the directories broker and connector
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import pyspark
from pyspark.sql import SparkSession

EXAMPLES = pathlib.Path(__file__).parent.parent
PASSWORD = "changeit"
DERBY = "org.apache.derby.jdbc.EmbeddedDriver"
PATIENCE = 60


def keytool(store, *arguments):
    command = ["keytool", "-noprompt", "-keystore", store, "-storepass", PASSWORD, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def make_stores(directory, names):
    """A key for each name, and stores of those who trust each other: the first two do."""
    for name in names:
        (directory / name).mkdir()
        key = ["-genkeypair", "-alias", name, "-keyalg", "EC", "-dname", f"CN={name}", "-validity", "365"]
        keytool(directory / name / "keystore.jks", *key, "-ext", "SAN=ip:127.0.0.1")
        certificate = directory / f"{name}.pem"
        keytool(directory / name / "keystore.jks", "-exportcert", "-alias", name, "-rfc", "-file", certificate)
    broker, client, stranger = names
    # A broker tries its own listener at its start.
    trust = ((broker, broker), (broker, client), (client, broker), (stranger, broker))
    for truster, trusted in trust:
        store, certificate = directory / truster / "truststore.jks", directory / f"{trusted}.pem"
        keytool(store, "-importcert", "-alias", trusted, "-file", certificate)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def broker(jars, directory):
    """A broker that wants certificates; gives its address."""
    port, control = free_port(), free_port()
    stores = directory / "broker"
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{control}",
        "listeners": f"SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{control}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "SSL",
        "listener.security.protocol.map": "SSL:SSL,CONTROLLER:PLAINTEXT",
        "log.dirs": str(directory / "log"),
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "num.partitions": "2",
        "ssl.client.auth": "required",
        "ssl.keystore.location": str(stores / "keystore.jks"),
        "ssl.keystore.password": PASSWORD,
        "ssl.key.password": PASSWORD,
        "ssl.truststore.location": str(stores / "truststore.jks"),
        "ssl.truststore.password": PASSWORD,
    }
    properties = directory / "server.properties"
    properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    java = ["java", "-Xmx512m", "-cp", f"{jars}/broker/*"]
    form = [*java, "kafka.tools.StorageTool", "format", "-t", "czJ2aWV3LWV4YW1wbGVzIQ", "-c", properties]
    subprocess.run(form, check=True, capture_output=True)
    with open(directory / "broker.log", "w") as log:
        server = subprocess.Popen([*java, "kafka.Kafka", properties], stdout=log, stderr=log)
    try:
        began = time.monotonic()
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            if server.poll() is not None or time.monotonic() - began > PATIENCE:
                sys.exit("the broker does not come up:\n" + (directory / "broker.log").read_text())
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def environment(directory, name):
    """What a pod has, with the certificates of `name`."""
    return {
        "CERTIFICATES": str(directory / name),
        "KEYSTORE_PASSWORD": PASSWORD,
        "TRUSTSTORE_PASSWORD": PASSWORD,
        "ADB_URL": f"jdbc:derby:{directory}/adb;create=true",
        "ADB_DRIVER": DERBY,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def run(jars, directory, address, name, *settings):
    """spark-submit of the application, as the seed starts it; its exit code and its words."""
    submit = pathlib.Path(pyspark.__file__).parent / "bin" / "spark-submit"
    command = [submit, "--master", "local[2]", "--driver-memory", "512m"]
    command += ["--conf", f"spark.driver.extraClassPath={jars}/connector/*", "--conf", "spark.ui.enabled=false"]
    command += [word for setting in settings for word in ("--conf", setting)]
    command += [EXAMPLES / "spark" / "sparkapp.py", "--bootstrap-servers", address, "--topic", "events"]
    command += ["--table", "events", "--checkpoint", directory / "checkpoint"]
    done = subprocess.run(
        command, env=os.environ | environment(directory, name), cwd=directory,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=180,
    )  # fmt: skip
    assert PASSWORD not in done.stdout, "the log shows a password"
    return done.returncode, done.stdout


def produce(spark, options, values):
    messages = spark.createDataFrame([(value,) for value in values], "value string")
    messages.write.format("kafka").options(**options).option("topic", "events").save()


def main(jars):
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        os.chdir(directory)
        make_stores(directory, ["broker", "client", "stranger"])
        os.environ |= environment(directory, "client")
        sys.path.insert(0, str(EXAMPLES / "spark"))
        import sparkapp

        with broker(jars, directory) as address:
            builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
            builder = builder.config("spark.ui.showConsoleProgress", "false")
            spark = builder.config("spark.driver.extraClassPath", f"{jars}/connector/*").getOrCreate()
            options = sparkapp.kafka_options(address, [])

            def rows():
                table = spark.read.jdbc(f"jdbc:derby:{directory}/adb", "events", properties={"driver": DERBY})
                found = sorted(row["message"] for row in table.collect())
                # Derby lets one process at a time have a database.
                manager = spark._jvm.java.sql.DriverManager
                with contextlib.suppress(Exception):
                    manager.getConnection(f"jdbc:derby:{directory}/adb;shutdown=true")
                return found

            produce(spark, options, ["one", "two"])
            code, said = run(jars, directory, address, "client")
            assert code == 0, said
            assert "tasks see the driver's certificates" in said, said
            assert rows() == ["one", "two"], rows()
            produce(spark, options, ["three"])
            # The settings that the seed gives to SparkSession reach Kafka, too.
            keystore = f"spark.kafka.ssl.keystore.location={directory}/client/keystore.jks"
            code, said = run(jars, directory, address, "client", keystore)
            assert code == 0, said
            assert rows() == ["one", "three", "two"], rows()
            code, said = run(jars, directory, address, "stranger", "spark.kafka.default.api.timeout.ms=10000")
            assert code == 1, said
            assert "SSL" in said and "the run failed" in said, said
            spark.stop()
    print("ok: sparkapp.py reads a Kafka over TLS, twice, and writes each message once; a stranger reads nothing")


if __name__ == "__main__":
    main(*sys.argv[1:])
