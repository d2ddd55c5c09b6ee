"""Buckets and accounts of the object store. Run again it changes nothing, or sets what was changed right.

Each account may use its own bucket only: MLflow's is `mlflow`; the pipeline's and Triton's share `mu2llm`,
which Triton's only reads. Who can write to `mu2llm` can run code in Triton: nothing else gets that account.
"""

import os

from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED
from minio.credentials import StaticProvider
from minio.versioningconfig import VersioningConfig

READ = ["s3:GetBucketLocation", "s3:ListBucket", "s3:GetObject"]
WRITE = [*READ, "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
ACCOUNTS = {"PIPELINE": ("mu2llm", WRITE), "MLFLOW": ("mlflow", WRITE), "SERVING": ("mu2llm", READ)}


def policy(bucket: str, actions: list[str]) -> dict:
    """What an account may do, as IAM writes it."""
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resources}],
    }


def main() -> None:
    endpoint = os.environ["ENDPOINT"]
    root, password = os.environ["MINIO_ROOT_USER"], os.environ["MINIO_ROOT_PASSWORD"]
    store = Minio(endpoint, access_key=root, secret_key=password, secure=False)
    admin = MinioAdmin(endpoint, credentials=StaticProvider(root, password), secure=False)
    for bucket in sorted({bucket for bucket, _ in ACCOUNTS.values()}):
        if not store.bucket_exists(bucket):
            store.make_bucket(bucket)
        # What is overwritten or deleted by mistake can be had back.
        store.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    for name, (bucket, actions) in ACCOUNTS.items():
        key, secret = os.environ[f"{name}_KEY"], os.environ[f"{name}_SECRET"]
        admin.user_add(key, secret)
        admin.policy_add(name.lower(), policy=policy(bucket, actions))
        admin.policy_set(name.lower(), user=key)
        print(f"{name.lower()}: bucket {bucket}")


if __name__ == "__main__":
    main()
