# sidpar for GPUs, on the image of PyTorch that brings torch, torchvision, CUDA and NCCL.
#
#   docker build -t sidpar .
#   mkdir -p runs
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD/runs:/workspace/runs" sidpar
#
# trains the demo with one rank per GPU. Docker itself would make a missing runs/ root's. What follows the image's
# name replaces the default arguments of torchrun:
#
#   docker run ... sidpar --standalone --nproc-per-node=4 -m sidpar.train --config /opt/sidpar/configs/cifar10.yaml ...
#
# --ipc=host: ranks on one host pass tensors through shared memory, of which a container has little by default.
# How this was checked, and what was not: docs/guides/gpus.md, "Docker".
ARG BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
FROM ${BASE}

# The base image installs into the system's Python, which asks for a yes. PYTHONUNBUFFERED: lines appear as they are
# printed. USER and HOME: for any --user, also one that the image does not know.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 USER=sidpar HOME=/tmp

WORKDIR /opt/sidpar
COPY pyproject.toml README.md LICENSE ./
COPY sidpar sidpar
COPY configs configs

# The constraints keep the torch of the base image, built for its CUDA: if pip had to replace it, the build fails.
RUN python3 -m pip list --format=freeze | grep -E '^(torch|torchvision)==' > /tmp/base.txt \
    && test "$(wc -l < /tmp/base.txt)" = 2 \
    && python3 -m pip install --constraint /tmp/base.txt . \
    && rm -r /tmp/base.txt build sidpar sidpar.egg-info

RUN useradd --create-home --shell /bin/bash sidpar \
    && mkdir -p /workspace/runs \
    && chown -R sidpar /workspace
USER sidpar
WORKDIR /workspace

ENTRYPOINT ["python3", "-m", "torch.distributed.run"]
CMD ["--standalone", "--nproc-per-node=gpu", "-m", "sidpar.train", "--config", "/opt/sidpar/configs/digits.yaml"]
