# Runs the tests: docker compose run --rm app uv run pytest
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim

# Java and Maven for the tests that kill brokers of their own: Redpanda stands beside this container, Apache Kafka runs inside
RUN apt-get update \
    && apt-get install --yes --no-install-recommends default-jre-headless maven \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv

WORKDIR /app
# The dependencies in their own layer, which stays when only the code changes
COPY pyproject.toml ./
RUN uv sync --no-install-project
COPY . .
RUN uv sync
CMD ["uv", "run", "pytest"]
