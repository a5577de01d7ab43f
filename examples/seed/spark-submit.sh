#!/usr/bin/env bash
# The same application without an operator: a plain spark-submit, with the claims of storageclass.yaml.
# MASTER names the API server, such as k8s://https://192.0.2.1:6443; SPARK_SUBMIT another program.
set -euo pipefail

: "${MASTER:?must be the API server, such as k8s://https://192.0.2.1:6443}"

conf=(
    spark.kubernetes.namespace=spark
    spark.kubernetes.container.image=apache/spark:3.5.1-python3
    spark.kubernetes.authenticate.driver.serviceAccountName=spark
    spark.kubernetes.driver.volumes.persistentVolumeClaim.checkpoint.options.claimName=kafka-spark-adb
    spark.kubernetes.driver.volumes.persistentVolumeClaim.checkpoint.mount.path=/var/lib/kafka-spark-adb
    "spark.driver.extraClassPath=/opt/spark/app/jars/*"
    "spark.executor.extraClassPath=/opt/spark/app/jars/*"
    spark.executor.instances=2
)
# Driver and executors mount the same.
for role in driver executor; do
    claims=spark.kubernetes.$role.volumes.persistentVolumeClaim
    secrets=spark.kubernetes.$role.secretKeyRef
    conf+=(
        "$claims.kafka-certs.options.claimName=certs"
        "$claims.kafka-certs.mount.path=/etc/kafka/ssl"
        "$claims.kafka-certs.mount.readOnly=true"
        "$claims.spark-app.options.claimName=apps"
        "$claims.spark-app.mount.path=/opt/spark/app"
        "$claims.spark-app.mount.readOnly=true"
        "$secrets.KEYSTORE_PASSWORD=kafka-ssl-passwords:keystore-password"
        "$secrets.TRUSTSTORE_PASSWORD=kafka-ssl-passwords:truststore-password"
        "$secrets.ADB_URL=adb-credentials:url"
        "$secrets.ADB_USER=adb-credentials:user"
        "$secrets.ADB_PASSWORD=adb-credentials:password"
    )
done

arguments=()
for setting in "${conf[@]}"; do
    arguments+=(--conf "$setting")
done

exec "${SPARK_SUBMIT:-spark-submit}" --master "$MASTER" --deploy-mode cluster --name kafka-spark-adb \
    "${arguments[@]}" "$@" local:///opt/spark/app/sparkapp.py \
    --bootstrap-servers kafka.kafka:9093 --topic events --table staging.events
