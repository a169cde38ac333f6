"""What the tests of storage share."""

import uuid

import pytest

from storage.root import open_root


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path):
    """An empty root, in a local folder and in memory."""
    return open_root(str(tmp_path / "root") if request.param == "folder" else f"memory://{uuid.uuid4().hex}")
