"""The cluster file, as Ray itself would check it; no network."""

import copy
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from tests import REPOSITORY


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(cluster) -> dict:
    from ray.autoscaler._private.util import prepare_config, validate_config

    result = prepare_config(copy.deepcopy(cluster))
    validate_config(result)
    return result


def test_ray_accepts_it(prepared):
    assert set(prepared["available_node_types"]) == {"head", "gpu", "cpu"}


def test_ray_refuses_a_broken_one(cluster):
    """So that acceptance means something."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    broken = copy.deepcopy(cluster)
    broken["available_node_types"]["gpu"]["resources"]["GPU"] = 0.5
    with pytest.raises(Exception, match=r"0\.5"):
        validate_config(prepare_config(broken))


def test_the_head_has_no_gpu_and_is_not_a_worker(prepared):
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"]["GPU"] == 0
    assert head.get("max_workers", 0) == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_gpu_workers_are_there_from_the_start_and_on_spot(prepared):
    gpu = prepared["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] >= 1
    assert 1 <= gpu["min_workers"] < gpu["max_workers"] <= prepared["max_workers"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_all_nodes_share_image_and_role(cluster):
    nodes = [node["node_config"] for node in cluster["available_node_types"].values()]
    assert len({node["ImageId"] for node in nodes}) == 1
    assert len({node["IamInstanceProfile"]["Name"] for node in nodes}) == 1


def test_what_is_mounted_is_there_and_suffices_to_install(cluster):
    mounts = {remote.removeprefix("/home/ubuntu/spp/"): local for remote, local in cluster["file_mounts"].items()}
    own = {remote: local for remote, local in mounts.items() if not local.startswith("~")}
    assert all(remote == local and (REPOSITORY / local).exists() for remote, local in own.items())
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert {"pyproject.toml", "README.md", "LICENSE", "requirements-tested.txt"} <= set(own)
    assert all(f'"{package}*"' in project for package in ("pipeline", "storage", "jobs"))
    assert {"pipeline", "storage", "jobs"} <= set(own)


def test_all_nodes_get_the_tested_versions(cluster):
    assert any("--constraint ~/spp/requirements-tested.txt" in command for command in cluster["setup_commands"])
    lines = (REPOSITORY / "requirements-tested.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert {"torch", "torchvision", "ray", "boto3", "s3fs"} <= pinned


def test_a_submitted_job_uploads_little_and_all_it_needs(tmp_path):
    """What .gitignore and .rayignore leave of the working folder, as Ray packs it."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    copy_of_repository(tmp_path / "repository")
    package = tmp_path / "package.zip"
    create_package(str(tmp_path / "repository"), package, True, excludes=get_runtime_env_default_excludes())
    names = zipfile.ZipFile(package).namelist()
    assert {
        "jobs/demo/demo.yaml",
        "jobs/__main__.py",
        "configs/voc2007.yaml",
        "pipeline/images/voc_annotation.py",
        "storage/root.py",
    } <= {*names}
    assert not any(name.startswith((".venv", ".git/", "tests/", "docs/", "demo/", "data/")) for name in names)
    assert package.stat().st_size < 2_000_000


def copy_of_repository(folder: Path) -> None:
    """Files of this repository, and some that a user may have beside them."""
    for name in ("pipeline", "storage", "jobs", "configs", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in (".venv/lib/x.py", ".git/objects/x", "data/VOCdevkit/x.jpg", "demo/features/x.parquet", "x.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1000))
