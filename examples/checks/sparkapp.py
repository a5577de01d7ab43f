"""The Spark application does what it says, in a real PySpark, as far as no cluster is needed: it looks at
its certificates, compares its executors' with them, and writes Kafka's rows to a database over JDBC."""

import contextlib
import datetime
import importlib.util
import io
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

EXAMPLES = pathlib.Path(__file__).parent.parent


def load(certificates):
    """The application, as it is when its certificates are there."""
    os.environ |= {"CERTIFICATES": certificates, "KEYSTORE_PASSWORD": "changeit", "TRUSTSTORE_PASSWORD": "changeit"}
    spec = importlib.util.spec_from_file_location("sparkapp", EXAMPLES / "spark" / "sparkapp.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sparkapp"] = module
    spec.loader.exec_module(module)
    return module


class Certificates(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name)
        for name in ("keystore.jks", "truststore.jks"):
            (self.path / name).write_bytes((EXAMPLES / "data" / name).read_bytes())

    def check(self, **environment):
        """The exit code of --check, and what it said."""
        command = [sys.executable, EXAMPLES / "spark" / "sparkapp.py", "--check"]
        variables = {"KEYSTORE_PASSWORD": "changeit", "TRUSTSTORE_PASSWORD": "changeit"} | environment
        variables = os.environ | {"CERTIFICATES": str(self.path)} | variables
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def refused(self, text, **environment):
        code, said = self.check(**environment)
        self.assertEqual(code, 2, said)
        self.assertIn(text, said)
        self.assertNotIn("changeit", said)

    def keytool(self, *arguments):
        store = ["-keystore", self.path / "keystore.jks", "-storepass", "changeit", "-keypass", "changeit"]
        subprocess.run(["keytool", *arguments, *store], check=True, capture_output=True)

    def test_good_ones_are_told_in_detail(self):
        code, said = self.check()
        self.assertEqual(code, 0, said)
        self.assertEqual(said.count("valid until"), 2)
        self.assertEqual(said.count("sha256"), 2)

    def test_a_missing_store_is_named_with_what_is_there(self):
        (self.path / "keystore.jks").rename(self.path / "kafka.keystore.jks")
        self.refused("the volume shows kafka.keystore.jks, truststore.jks")

    def test_an_empty_store_is_no_store(self):
        (self.path / "keystore.jks").write_bytes(b"")
        self.refused("is empty")

    def test_a_wrong_password_is_told_by_its_variable(self):
        self.refused("cannot be opened with KEYSTORE_PASSWORD", KEYSTORE_PASSWORD="wrong-password")
        self.refused("TRUSTSTORE_PASSWORD is not set", TRUSTSTORE_PASSWORD="")

    def test_stores_that_were_mixed_up_are_told(self):
        (self.path / "keystore.jks").write_bytes((self.path / "truststore.jks").read_bytes())
        self.refused("holds no PrivateKeyEntry")

    def test_what_has_ended_or_not_begun_is_no_good(self):
        for start, text in (("-30d", "ended at"), ("+30d", "begins at")):
            (self.path / "keystore.jks").unlink()
            key = ["-genkeypair", "-alias", "a", "-keyalg", "EC", "-dname", "CN=a", "-validity", "10"]
            self.keytool(*key, "-startdate", start)
            self.refused(text)

    def test_what_ends_soon_is_a_warning(self):
        (self.path / "keystore.jks").unlink()
        key = ["-genkeypair", "-alias", "a", "-keyalg", "EC", "-dname", "CN=a", "-validity", "10"]
        self.keytool(*key)
        code, said = self.check()
        self.assertEqual(code, 0, said)
        self.assertIn("WARNING kafka-spark-adb: " + str(self.path / "keystore.jks") + ": valid until", said)

    @unittest.skipUnless(os.getuid() == 0, "only root can become another user")
    def test_a_file_of_somebody_else_is_told(self):
        os.chmod(self.path, 0o755)
        os.chmod(self.path / "keystore.jks", 0o400)
        # Imported first: who is not root may not read the interpreter's own files.
        command = f"import os, sys; sys.path.insert(0, {str(EXAMPLES / 'spark')!r}); import sparkapp; "
        command += "os.setgid(185); os.setuid(185); sys.exit(sparkapp.main(['--check']))"
        variables = os.environ | {"CERTIFICATES": str(self.path)}
        done = subprocess.run([sys.executable, "-c", command], env=variables, capture_output=True, text=True)
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertIn("cannot be read by uid 185: set uid or fileMode", done.stdout)


class Spark(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        from pyspark.sql import SparkSession

        cls.app = load(str(EXAMPLES / "data"))
        builder = SparkSession.builder.master("local[2]").appName("check")
        builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false").config("spark.sql.shuffle.partitions", "1")
        cls.spark = builder.config("spark.kafka.ssl.keystore.type", "JKS").getOrCreate()
        cls.spark.sparkContext.addPyFile(str(EXAMPLES / "spark" / "sparkapp.py"))

    @classmethod
    def tearDownClass(cls):
        cls.spark.stop()

    def test_executors_are_compared(self):
        with self.assertLogs("kafka-spark-adb", "INFO") as logs:
            self.app.compare_executors(self.spark)
        self.assertIn("2 tasks see the driver's certificates", logs.output[0])

    def test_settings_reach_the_source(self):
        options = self.app.kafka_options("kafka:9093", self.spark.sparkContext.getConf().getAll())
        self.assertEqual(options["kafka.ssl.keystore.type"], "JKS")
        self.assertEqual(options["kafka.ssl.keystore.password"], "changeit")
        self.assertTrue(options["kafka.ssl.truststore.location"].endswith("/truststore.jks"))

    def test_rows_arrive_in_the_table(self):
        database = "jdbc:derby:memory:adb;create=true"
        os.environ |= {"ADB_URL": database, "ADB_DRIVER": "org.apache.derby.jdbc.EmbeddedDriver"}
        now = datetime.datetime(2026, 1, 31, 12)
        form = "key binary, value binary, topic string, partition int, offset long, timestamp timestamp"
        messages = [(b"k", b"first", "events", 0, 1, now), (None, b"second", "events", 1, 7, now)]
        batch = self.app.rows(self.spark.createDataFrame(messages, form))
        write = self.app.writer("events")
        write(batch, 0)
        write(batch.limit(0), 1)
        write(batch, 2)
        driver = "org.apache.derby.jdbc.EmbeddedDriver"
        table = self.spark.read.jdbc(database, "events", properties={"driver": driver})
        self.assertEqual(table.count(), 4)
        row = table.where("kafka_offset = 7").first()
        self.assertEqual((row["message_key"], row["message"], row["kafka_partition"]), (None, "second", 1))


if __name__ == "__main__":
    logging.getLogger("py4j").setLevel(logging.ERROR)
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    with tempfile.TemporaryDirectory() as directory:
        # Derby writes its log where it stands.
        with contextlib.chdir(directory):
            said = io.StringIO()
            program = unittest.main(exit=False, testRunner=unittest.TextTestRunner(said))
    good = program.result.wasSuccessful()
    print(f"ok: sparkapp.py in a real PySpark, {program.result.testsRun} tests" if good else said.getvalue())
    sys.exit(not good)
