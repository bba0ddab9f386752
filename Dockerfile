# shears on the CPU: docker build -t shears . && docker run --rm -v "$PWD:/work" shears init
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11-slim
# An index of torch's CPU wheels makes the image gigabytes smaller: --build-arg TORCH_INDEX=URL
ARG TORCH_INDEX
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.9"
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/shears_llm-*.whl)[serve]" && rm -r /wheels
RUN useradd --create-home user && mkdir /work && chown user /work
USER user
WORKDIR /work
ENTRYPOINT ["shears"]
