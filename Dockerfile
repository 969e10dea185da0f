# The server in an image of its own; docs/install.md says how to build and run it.
FROM python:3.12-slim AS build
# Where torch comes from: builds for the CPU, or https://download.pytorch.org/whl/cu130 and its like for CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/mta
ENV PATH=/opt/mta/bin:$PATH
# A layer of its own, because torch changes seldom and the source often. The range is that of pyproject.toml.
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.10,<3"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mta_cli mta_cli
COPY store store
COPY docs/mta.1 docs/
RUN pip install --no-cache-dir "/src[serve]"

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 mta && install --directory --owner mta --group mta /store /models
COPY --from=build /opt/mta /opt/mta
ENV PATH=/opt/mta/bin:$PATH MTA_STORE=/store MTA_MODELS=/models
USER 1000
WORKDIR /home/mta
VOLUME ["/store", "/models"]
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["mta"]
CMD ["serve", "--host", "0.0.0.0"]
