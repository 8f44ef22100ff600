# The Executor as an image.
#
#   docker build -t finetuner-executor .
#   docker run --rm -p 51000:51000 -v finetuner:/workspace finetuner-executor --port 51000
#
# For a machine without a GPU, the CPU build of torch makes the image gigabytes smaller:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu -t finetuner-executor .

FROM python:3.11-slim

ENV JINA_OPTOUT_TELEMETRY=1 \
    NO_ALBUMENTATIONS_UPDATE=1 \
    PYTHONUNBUFFERED=1 \
    GOMP_SPINCOUNT=10000

# First what changes seldom, so that a change of ours does not install everything again.
ARG PIP_EXTRA_INDEX_URL
COPY requirements.txt /app/
RUN pip install --no-cache-dir -r /app/requirements.txt

COPY config.yml /app/
COPY executor/ /app/executor/
COPY scripts/healthy /app/scripts/

# All that the service writes lies in its home: runs and models in .cache/jina (or where --workspace says), weights
# of hub models in .cache/huggingface. Mount a volume there to keep them.
# Where versions are published for readers is its own as well, in case that is a volume.
RUN useradd --uid 1000 --create-home --home-dir /workspace executor && install -d -o executor -g executor /published
USER executor
VOLUME /workspace /published
WORKDIR /app

# Jina closes its Executor on SIGINT; on SIGTERM, Docker's default, its main process ends without.
STOPSIGNAL SIGINT
# The one call that shows the truth; another port than 51000 is named in PORT (-e PORT=…).
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s CMD python scripts/healthy "${PORT:-51000}"
ENTRYPOINT ["jina", "executor", "--uses", "config.yml"]
