"""Stands for the Spark application of the example: code that lives in the bucket."""

import os
import sys

CERTIFICATES = os.environ.get("CERTIFICATES", "/etc/kafka/ssl")


def main() -> int:
    for name in ("keystore.jks", "truststore.jks"):
        path = os.path.join(CERTIFICATES, name)
        print(f"{path}: {os.path.getsize(path)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
