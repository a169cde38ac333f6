# One image for all pods of a KubeRay cluster, and for `docker run`: Ray, torch and this package, as they were tested.
#
#   docker build --tag registry.example.com/spp:0.1.0 .
#   docker push registry.example.com/spp:0.1.0                       deploy/rayjob.yaml names it
#   docker run --rm --gpus all --shm-size 2g --volume /data:/data registry.example.com/spp:0.1.0 \
#       spp run --config /data/animals.yaml --root /data/spp       user 1000 must be allowed to write to /data
#
# Ray's own images bring a CUDA of their own; torch's wheels bring the one that torch was built with, so a slim Python
# is enough. The node brings the driver (580 or newer for CUDA 13) and NVIDIA's container toolkit or device plugin.
FROM python:3.11-slim-bookworm

# KubeRay starts the containers with bash, and older versions of it probe them with wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash wget \
    && rm -rf /var/lib/apt/lists/*

# compute: CUDA; utility: nvidia-smi. Which GPUs a container gets is not said here: Kubernetes or `--gpus` does.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# The dependencies before the code, so that a change of the code costs seconds and uploads little.
WORKDIR /opt/spp
COPY pyproject.toml requirements-tested.txt ./
RUN python -c 'import tomllib; \
    project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    extras = project["optional-dependencies"]; \
    print(*project["dependencies"], *extras["s3"], *extras["demo"], sep="\n")' > wanted.txt \
    && pip install --no-cache-dir --constraint requirements-tested.txt --requirement wanted.txt

COPY README.md LICENSE ./
COPY pipeline pipeline
COPY storage storage
COPY jobs jobs
RUN pip install --no-cache-dir --constraint requirements-tested.txt '.[s3,demo]' \
    && rm -rf build ./*.egg-info

# Not root. A number, since Kubernetes's runAsNonRoot cannot judge a name. What numba compiles is kept where any user
# may write; weights that are downloaded go to the home folder.
RUN useradd --uid 1000 --create-home spp \
    && install --directory --mode 1777 /var/cache/numba
ENV NUMBA_CACHE_DIR=/var/cache/numba
COPY configs /home/spp/configs
USER 1000
WORKDIR /home/spp
CMD ["spp", "--help"]
