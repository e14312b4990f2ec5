"""fsspec's own suite for filesystems, against a node that serves a directory.

Nothing is left out. Millrace neither makes nor removes directories, as an object store, and the suite asks for
that of such a filesystem: `supports_empty_directories` is False. A source that is a directory keeps the
directories that a delete leaves empty, which an object store does not have, so this file removes them there.
"""

import os
import shutil

import pytest
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests import abstract

from millrace.fs import MillraceFileSystem


class PrunedFileSystem(MillraceFileSystem):
    """Millrace over a directory whose empty directories vanish, as in an object store."""

    def __init__(self, address, served, **options):
        super().__init__(address, served=served, **options)
        self.served = served

    def rm(self, path, recursive=False, maxdepth=None):
        super().rm(path, recursive, maxdepth)
        for folder, _, _ in os.walk(self.served, topdown=False):
            if not os.listdir(folder) and folder != self.served:
                os.rmdir(folder)


class MillraceFixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, node, fs_path):
        return PrunedFileSystem(node.address, str(node.folder / fs_path))

    @pytest.fixture
    def fs_path(self, node):
        folder = node.folder / "abstract"
        folder.mkdir()
        yield "abstract"
        shutil.rmtree(folder)

    @pytest.fixture
    def local_fs(self):
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_path(self, tmp_path):
        return make_path_posix(str(tmp_path))

    @pytest.fixture
    def supports_empty_directories(self):
        return False


class TestMillraceCopy(abstract.AbstractCopyTests, MillraceFixtures):
    pass


class TestMillraceGet(abstract.AbstractGetTests, MillraceFixtures):
    pass


class TestMillracePut(abstract.AbstractPutTests, MillraceFixtures):
    pass


class TestMillracePipe(abstract.AbstractPipeTests, MillraceFixtures):
    pass


class TestMillraceOpen(abstract.AbstractOpenTests, MillraceFixtures):
    pass
