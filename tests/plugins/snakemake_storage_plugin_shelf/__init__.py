"""A storage for tests, as S3 is: objects by key, and a folder is what keys have in common.

Queries are ``shelf:///folder/key``, where the folder is on this machine.
"""

import shutil
from pathlib import Path
from urllib.parse import urlparse

from snakemake_interface_storage_plugins.io import Mtime
from snakemake_interface_storage_plugins.storage_object import (
    StorageObjectRead,
    StorageObjectWrite,
)
from snakemake_interface_storage_plugins.storage_provider import (
    StorageProviderBase,
    StorageQueryValidationResult,
)


class StorageProvider(StorageProviderBase):
    @classmethod
    def example_queries(cls):
        return []

    @classmethod
    def is_valid_query(cls, query):
        return StorageQueryValidationResult(query, urlparse(query).scheme == "shelf")

    def rate_limiter_key(self, query, operation):
        return None

    def default_max_requests_per_second(self):
        return 0

    def use_rate_limiter(self):
        return False


class StorageObject(StorageObjectRead, StorageObjectWrite):
    @property
    def place(self):
        return Path(urlparse(self.query).path)

    def files(self):
        """Objects that the query stands for: one, or all under a folder."""
        if self.place.is_file():
            return [self.place]
        return [path for path in self.place.rglob("*") if path.is_file()]

    async def inventory(self, cache):
        key = self.cache_key()
        cache.exists_in_storage[key] = self.exists()
        if cache.exists_in_storage[key]:
            cache.mtime[key] = Mtime(storage=self.mtime())
            cache.size[key] = self.size()

    def get_inventory_parent(self):
        return None

    def local_suffix(self):
        return urlparse(self.query).path.lstrip("/")

    def cleanup(self):
        pass

    def exists(self):
        return bool(self.files())

    def mtime(self):
        return max(path.stat().st_mtime for path in self.files())

    def size(self):
        return sum(path.stat().st_size for path in self.files())

    def retrieve_object(self):
        copy(self.files(), self.place, self.local_path())

    def store_object(self):
        found = self.local_path()
        files = [found] if found.is_file() else [x for x in found.rglob("*") if x.is_file()]
        copy(files, found, self.place)

    def remove(self):
        for path in self.files():
            path.unlink()


def copy(files, source, target):
    for path in files:
        there = target / path.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)  # with a time of its own, as an upload or download has
