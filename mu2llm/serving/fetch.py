"""Copies what is served out of a model repository: `python -m mu2llm.serving.fetch REPOSITORY FOLDER`.

Run before a tritonserver that starts on the copy, in place of Triton's own reading of S3: that takes every
version that was ever exported, and does not see that a file differs from its manifest.
"""

import argparse
import shutil
import time
from pathlib import Path

from mu2llm import storage
from mu2llm.serving.export import MODEL, served_version, verify

WAIT_SECONDS = 15


def fetch_served(repository: str, folder: str | Path, *, wait: bool = False) -> Path:
    """Copies the served version and config.pbtxt of `repository` to `folder`; returns the version's folder.

    Args:
        repository: made by `export_triton`, a folder or s3:// address.
        folder: the new repository; a version in it from an earlier, broken call is replaced.
        wait: where nothing has been exported yet, wait until something has.

    Raises `FileNotFoundError` when nothing has been exported, `ValueError` when a file is missing or differs
    from its manifest.
    """
    config, target = f"{repository.rstrip('/')}/{MODEL}/config.pbtxt", Path(folder) / MODEL
    while wait and not storage.exists(config):
        print(f"{config} is not there yet: nothing has been exported", flush=True)
        time.sleep(WAIT_SECONDS)
    storage.write_bytes(target / "config.pbtxt", storage.read_bytes(config))
    version = served_version(folder)
    entry = target / str(version)
    shutil.rmtree(entry, ignore_errors=True)
    got = storage.fetch(f"{repository.rstrip('/')}/{MODEL}/{version}", target)
    if got != entry:  # a local repository is not copied by itself
        shutil.copytree(got, entry)
    verify(entry)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", help="a folder or s3:// address")
    parser.add_argument("folder", help="where the served version is copied to")
    parser.add_argument("--wait", action="store_true", help="wait until something has been exported")
    options = parser.parse_args()
    print(f"{fetch_served(options.repository, options.folder, wait=options.wait)} is whole", flush=True)


if __name__ == "__main__":
    main()
