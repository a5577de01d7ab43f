"""From Kafka over TLS to the warehouse (ADB) over JDBC, with certificates that s3view mounts.

    sparkapp.py --check            looks at the certificates, and ends; needs no Spark
    sparkapp.py --bootstrap-servers kafka:9093 --topic events --table staging.events

A run writes what came since the last one, and ends: an Airflow DAG starts it again. What was written
is remembered in the checkpoint directory. A run that broke off may write its last batch twice; the
columns topic, kafka_partition and kafka_offset tell such rows apart.

Passwords come from the environment (KEYSTORE_PASSWORD, TRUSTSTORE_PASSWORD, ADB_PASSWORD): settings
of Spark are shown in its web pages. Exit codes: 1 if Spark fails, 2 if a certificate is no good.
"""

import argparse
import datetime
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys

CERTIFICATES = os.environ.get("CERTIFICATES", "/etc/kafka/ssl")
CHECKPOINT = "/var/lib/kafka-spark-adb/checkpoint"
# A store, the variable with its password, and what it must hold for Kafka.
STORES = {
    "keystore.jks": ("KEYSTORE_PASSWORD", "PrivateKeyEntry"),
    "truststore.jks": ("TRUSTSTORE_PASSWORD", "trustedCertEntry"),
}
SOON = datetime.timedelta(days=30)

log = logging.getLogger("kafka-spark-adb")


class BadCertificate(Exception):
    """A store that Kafka could not work with; the text says what to change."""


def digest(path):
    """What is in a file, in twelve digits."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:12]


def check_file(path):
    """A file that is there, has content, and is for its reader alone."""
    try:
        found = os.stat(path)
        content = digest(path)
    except FileNotFoundError:
        names = ", ".join(sorted(os.listdir(CERTIFICATES))) if os.path.isdir(CERTIFICATES) else "nothing"
        raise BadCertificate(f"{path} is missing; the volume shows {names}: check prefix and include")
    except PermissionError as error:
        raise BadCertificate(f"{path} cannot be read by uid {os.getuid()}: set uid or fileMode ({error})")
    if found.st_size == 0:
        raise BadCertificate(f"{path} is empty; upload it again")
    if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        log.warning("%s may be read by others (%o); set fileMode", path, stat.S_IMODE(found.st_mode))
    changed = datetime.datetime.fromtimestamp(found.st_mtime, datetime.timezone.utc)
    log.info(
        "%s: %d bytes, sha256 %s.., uid %d, gid %d, mode %04o, uploaded %s, revision %s",
        path, found.st_size, content, found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode),
        changed.isoformat(timespec="seconds"), os.path.dirname(os.path.realpath(path)),
    )  # fmt: skip


def entries(path, variable):
    """What keytool tells of a store."""
    home = os.environ.get("JAVA_HOME")
    keytool = os.path.join(home, "bin", "keytool") if home else shutil.which("keytool")
    if not keytool:
        raise BadCertificate("keytool of Java is not here; set JAVA_HOME")
    if not os.environ.get(variable):
        raise BadCertificate(f"{variable} is not set; {path} needs a password")
    told = subprocess.run(
        [keytool, "-J-Duser.language=en", "-J-Duser.timezone=UTC", "-list", "-v"]
        + ["-keystore", path, "-storepass:env", variable],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if told.returncode != 0:
        text = (told.stdout + told.stderr).strip().splitlines()
        raise BadCertificate(f"{path} cannot be opened with {variable}: {text[0] if text else 'no word'}")
    return told.stdout


def check_dates(path, told):
    """No certificate in it is too new or too old."""
    form = "%a %b %d %H:%M:%S %Z %Y"
    now = datetime.datetime.now(datetime.timezone.utc)
    for line in told.splitlines():
        if not line.strip().startswith("Valid from: "):
            continue
        begin, end = line.strip().removeprefix("Valid from: ").split(" until: ")
        begin, end = (
            datetime.datetime.strptime(time, form).replace(tzinfo=datetime.timezone.utc)
            for time in (begin, end)
        )
        if now < begin:
            raise BadCertificate(f"{path} has a certificate that begins at {begin:%Y-%m-%d}; check the clock")
        if now > end:
            raise BadCertificate(f"{path} has a certificate that ended at {end:%Y-%m-%d}; upload a new one")
        level = logging.WARNING if end - now < SOON else logging.INFO
        log.log(level, "%s: valid until %s", path, f"{end:%Y-%m-%d}")


def check_certificates():
    """All that can be said of the certificates before Kafka is asked."""
    for name, (variable, entry) in STORES.items():
        path = os.path.join(CERTIFICATES, name)
        check_file(path)
        told = entries(path, variable)
        if entry not in told:
            raise BadCertificate(f"{path} holds no {entry}; was it uploaded under the other's name?")
        check_dates(path, told)


def fingerprints(_=None):
    """The stores as this process sees them; runs on executors too."""
    return {name: digest(os.path.join(CERTIFICATES, name)) for name in STORES}


def compare_executors(spark):
    """Whether the executors see what the driver sees."""
    own = fingerprints()
    count = max(1, spark.sparkContext.defaultParallelism)
    seen = spark.sparkContext.parallelize(range(count), count).map(fingerprints).collect()
    differ = sum(1 for theirs in seen if theirs != own)
    if differ:
        # A rotation is on its way to the other nodes; either pair is a good one.
        log.warning("%d of %d tasks see other certificates than the driver", differ, count)
    else:
        log.info("%d tasks see the driver's certificates", count)


def kafka_options(bootstrap_servers, settings):
    """Options of the Kafka source: TLS with the mounted stores, and all settings spark.kafka.*."""
    options = {
        "kafka.bootstrap.servers": bootstrap_servers,
        "kafka.security.protocol": "SSL",
        "kafka.ssl.keystore.location": os.path.join(CERTIFICATES, "keystore.jks"),
        "kafka.ssl.keystore.password": os.environ.get("KEYSTORE_PASSWORD", ""),
        "kafka.ssl.key.password": os.environ.get("KEY_PASSWORD", os.environ.get("KEYSTORE_PASSWORD", "")),
        "kafka.ssl.truststore.location": os.path.join(CERTIFICATES, "truststore.jks"),
        "kafka.ssl.truststore.password": os.environ.get("TRUSTSTORE_PASSWORD", ""),
    }
    for name, value in settings:
        if name.startswith("spark.kafka."):
            options[name.removeprefix("spark.")] = value
    return options


def rows(messages):
    """The columns of the table, out of Kafka's."""
    return messages.selectExpr(
        "CAST(key AS STRING) AS message_key",
        "CAST(value AS STRING) AS message",
        "topic",
        "partition AS kafka_partition",
        "offset AS kafka_offset",
        "timestamp AS kafka_time",
        "current_timestamp() AS loaded_at",
    )


def writer(table):
    """Writes one batch, in one transaction for each task."""
    url, driver = os.environ["ADB_URL"], os.environ.get("ADB_DRIVER", "org.postgresql.Driver")

    def write(batch, number):
        batch.persist()
        count = batch.count()
        log.info("batch %d: %d rows for %s", number, count, table)
        if count:
            options = {"url": url, "dbtable": table, "driver": driver, "batchsize": "10000"}
            options |= {"user": os.environ.get("ADB_USER", ""), "password": os.environ.get("ADB_PASSWORD", "")}
            batch.write.format("jdbc").options(**options).mode("append").save()
        log.info("batch %d: written", number)
        batch.unpersist()

    return write


def load(spark, arguments):
    """Everything that came since the last run."""
    settings = spark.sparkContext.getConf().getAll()
    options = kafka_options(arguments.bootstrap_servers, settings)
    shown = {name: value for name, value in options.items() if "password" not in name}
    log.info("Kafka: %s, topic %s", shown, arguments.topic)
    source = spark.readStream.format("kafka").options(**options)
    source = source.option("subscribe", arguments.topic).option("startingOffsets", "earliest")
    query = (
        rows(source.load())
        .writeStream.foreachBatch(writer(arguments.table))
        .option("checkpointLocation", arguments.checkpoint)
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()
    done = query.lastProgress
    log.info("finished: %s", done["sources"] if done else "nothing had come")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="look at the certificates, and end")
    parser.add_argument("--bootstrap-servers")
    parser.add_argument("--topic")
    parser.add_argument("--table")
    parser.add_argument("--checkpoint", default=CHECKPOINT)
    arguments = parser.parse_args(words)
    if not arguments.check and not all((arguments.bootstrap_servers, arguments.topic, arguments.table)):
        parser.error("--bootstrap-servers, --topic and --table are required without --check")
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stdout,
    )
    try:
        check_certificates()
    except BadCertificate as error:
        log.error("%s", error)
        return 2
    if arguments.check:
        return 0
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("Kafka-Spark-ADB").getOrCreate()
    try:
        compare_executors(spark)
        load(spark, arguments)
    except Exception:
        log.exception("the run failed; the next one begins where this one was")
        return 1
    finally:
        spark.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
