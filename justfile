# Short names; plain cargo always works without them.

default:
    @just --list

# Objects of a bucket as files of a pod, without a cluster
demo:
    cargo run --release --example demo

# All tests; MinIO's need Go
test:
    cargo test

# The integration suite without MinIO
test-embedded:
    cargo test --test it embedded

# The examples, held to Kubernetes, Spark and Airflow
examples:
    examples/check

fmt:
    cargo fmt

fmt-check:
    cargo fmt --check

clippy:
    cargo clippy --all-targets -- -D warnings

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# Licences, sources and advisories of all dependencies
deny:
    cargo deny check

# The chart, the plain manifests and the Dockerfiles
deploy-check:
    deploy/check

# deploy/kustomize anew from the chart
manifests:
    deploy/generate

# What a change must pass
ci:
    .ci/run
