#!/usr/bin/env bash
# Makes the bucket at MinIO, a reader who may see two directories of it and change nothing, and uploads
# certificates and code. Wants MinIO's client (mc; MC names another program).
#
#     READER_SECRET_KEY=... ./bucket.sh          all of it; again is fine
#     ./bucket.sh upload                         the upload alone: a rotation, a new release
#
# Pods that mount certs/ show new stores within a minute. Everything that was overwritten is kept, so
# that asOf can show any moment of the past.
set -euo pipefail

MINIO_ENDPOINT=${MINIO_ENDPOINT:-http://minio:9000}
MINIO_ACCESS_KEY=${MINIO_ACCESS_KEY:-minio}
MINIO_SECRET_KEY=${MINIO_SECRET_KEY:-minio123}
BUCKET_NAME=${BUCKET_NAME:-kafka-certs-bucket}
READER_ACCESS_KEY=${READER_ACCESS_KEY:-spark-reader}
KEYSTORE_PATH=${KEYSTORE_PATH:-./kafka.client.keystore.jks}
TRUSTSTORE_PATH=${TRUSTSTORE_PATH:-./kafka.client.truststore.jks}
SPARKAPP_PATH=${SPARKAPP_PATH:-./sparkapp.py}
# Uploaded if they are there: a pod template for executors, and jars.
TEMPLATE_PATH=${TEMPLATE_PATH:-./pod-template.yaml}
JARS_PATH=${JARS_PATH:-./jars}
# yes: objects are encrypted with a key of MinIO's (wants MINIO_KMS_* at the server).
ENCRYPT=${ENCRYPT:-no}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The administrator's keys are kept nowhere, and are in no argument that others can see.
private=$(mktemp -d)
trap 'rm -rf "$private"' EXIT

mc() {
    command "${MC:-mc}" --config-dir "$private" --quiet "$@"
}

connect() {
    printf '%s\n%s\n' "$MINIO_ACCESS_KEY" "$MINIO_SECRET_KEY" |
        mc alias set minio "$MINIO_ENDPOINT" >"$private/said" 2>&1 || {
        cat "$private/said" >&2
        exit 1
    }
}

make_bucket() {
    mc mb --ignore-existing "minio/$BUCKET_NAME"
    mc version enable "minio/$BUCKET_NAME"
    # Nobody reads it without credentials.
    mc anonymous set none "minio/$BUCKET_NAME"
    if [ "$ENCRYPT" = yes ]; then
        mc encrypt set sse-s3 "minio/$BUCKET_NAME"
    fi
}

make_reader() {
    : "${READER_SECRET_KEY:?must be the secret key of the reader, of at least 8 characters}"
    local policy=read-$BUCKET_NAME
    sed "s/kafka-certs-bucket/$BUCKET_NAME/g" "$here/reader-policy.json" >"$private/policy.json"
    mc admin policy create minio "$policy" "$private/policy.json"
    printf '%s\n%s\n' "$READER_ACCESS_KEY" "$READER_SECRET_KEY" | mc admin user add minio >/dev/null
    if ! mc admin user info minio "$READER_ACCESS_KEY" | grep -qw -- "$policy"; then
        mc admin policy attach minio "$policy" --user "$READER_ACCESS_KEY"
    fi
}

upload() {
    mc cp "$KEYSTORE_PATH" "minio/$BUCKET_NAME/certs/keystore.jks"
    mc cp "$TRUSTSTORE_PATH" "minio/$BUCKET_NAME/certs/truststore.jks"
    mc cp "$SPARKAPP_PATH" "minio/$BUCKET_NAME/apps/sparkapp.py"
    if [ -f "$TEMPLATE_PATH" ]; then
        mc cp "$TEMPLATE_PATH" "minio/$BUCKET_NAME/apps/pod-template.yaml"
    fi
    if [ -d "$JARS_PATH" ]; then
        mc cp --recursive "$JARS_PATH/" "minio/$BUCKET_NAME/apps/jars/"
    fi
    mc ls --recursive --versions "minio/$BUCKET_NAME"
}

connect
case ${1:-all} in
all)
    make_bucket
    make_reader
    upload
    ;;
upload)
    upload
    ;;
*)
    echo "usage: $0 [upload]" >&2
    exit 64
    ;;
esac
