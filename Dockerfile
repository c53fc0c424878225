# The HTTP service and its page, on the CPU.
#
#     docker build -t atrous --build-arg TORCH_INDEX=... .      the index of PyTorch's CPU wheels, as pytorch.org names it
#     docker run --rm -p 127.0.0.1:8000:8000 atrous             everyday objects; behind the image's name, any MODEL
#
# Without TORCH_INDEX pip takes its usual wheels, which on x86 bring CUDA along: some gigabytes more.

FROM python:3.12-slim AS build
ARG TORCH_INDEX=""
RUN python -m venv /opt/atrous
RUN /opt/atrous/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.10" "torchvision>=0.25"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/atrous/bin/pip install --no-cache-dir ".[serve]"

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 atrous
COPY --from=build /opt/atrous /opt/atrous
ENV PATH=/opt/atrous/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
USER atrous
WORKDIR /home/atrous
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["atrous", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["objects-mobilenetv2"]
