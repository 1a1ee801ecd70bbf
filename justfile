# `uv run` sets UV to its own path, so the recipes also work if uv is not on the PATH
uv := quote(env("UV", "uv"))

# Hundreds of tests start a process: compile the modules that they import only once
export PYTHONDONTWRITEBYTECODE := ""

# "$@" keeps arguments whole: just test -k "one or other"
set positional-arguments

[private]
default:
    @{{ just_executable() }} --justfile {{ quote(justfile()) }} --list

# Make the environment with all development tools
install:
    {{ uv }} sync

# Format, fix what can be fixed, check the rest
lint:
    {{ uv }} run ruff format
    {{ uv }} run ruff check --fix
    @{{ just_executable() }} _newlines --fix
    {{ uv }} run ty check
    {{ uv }} run lint-imports
    @{{ just_executable() }} types

# Check everything, and change nothing
lint-ci:
    {{ uv }} run ruff format --check
    {{ uv }} run ruff check
    @{{ just_executable() }} _newlines
    {{ uv }} run ty check
    {{ uv }} run lint-imports
    @{{ just_executable() }} types

# Check that users' type checkers know every public type
types:
    {{ uv }} run pyright --ignoreexternal --verifytypes faststream_concurrent_kafka

# Every text file of the repository ends in one newline (ruff checks Python files only)
_newlines *flags:
    #!/usr/bin/env -S {{ uv }} run python
    import subprocess, sys
    from pathlib import Path
    listed = subprocess.run(["git", "grep", "-zIl", "--untracked", ""], check=True, stdout=subprocess.PIPE, text=True)
    wrong = [
        path
        for path in map(Path, listed.stdout.split("\0")[:-1])
        if path.is_file() and path.read_bytes() != path.read_bytes().rstrip(b"\n") + b"\n"
    ]
    for path in wrong:
        if "--fix" in sys.argv:
            path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\n")
        print(f"{path}: not one newline at its end")
    sys.exit(bool(wrong) and "--fix" not in sys.argv)

# Build the image that runs the tests
build:
    docker compose build

# Run the tests that need no broker, with fewer random examples than `test`: half a minute
test-unit *args:
    {{ uv }} run pytest tests/unit --numprocesses=logical --no-loadscope-reorder "$@"

# Run all tests, or those that pytest's arguments choose: in Docker Compose if it answers, otherwise on this machine
test *args:
    #!/usr/bin/env bash
    set -euo pipefail
    # More workers than two cores: most tests wait. Tests that share brokers of their own stay together.
    set -- --numprocesses=4 --no-loadscope-reorder "$@"
    set -- --hypothesis-profile={{ if env("CI", "") == "" { "thorough" } else { "ci" } }} "$@"
    # `docker --version` answers without an engine, `docker info` without the compose plugin, that one without an engine
    answers() { docker info && docker compose version; }
    if [ -z "${KAFKA_BOOTSTRAP_SERVERS-}${TEST_KAFKA-}" ] && answers >/dev/null 2>&1; then
        trap 'docker compose down --volumes --remove-orphans' EXIT
        docker compose run --build --rm -e CI app uv run pytest "$@"
    else
        {{ uv }} run pytest "$@"
    fi

# Run all tests so many times; print which failed, and how long each run took
flaky runs="10" *args:
    #!/usr/bin/env bash
    set -euo pipefail
    logs=$(mktemp -d) red=0
    for run in $(seq {{ runs }}); do
        {{ just_executable() }} --justfile {{ quote(justfile()) }} test "${@:2}" >"$logs/$run" 2>&1 || red=$((red + 1))
        grep -E '^(FAILED|ERROR) ' "$logs/$run" || true
        echo "run $run: $(grep -E ' in [0-9.]+s' "$logs/$run" | tail -n 1)"
    done
    echo "$red of {{ runs }} runs were red; all output is in $logs"
    [ "$red" = 0 ]

# Run all tests with branch coverage
test-branch *args:
    @{{ just_executable() }} test --cov --cov-branch --cov-report=term-missing "$@"

# Remove the containers and volumes of `build` and `test`
down:
    docker compose down --volumes --remove-orphans

# Build the version of the tag $GITHUB_REF_NAME, and publish it
publish:
    #!/usr/bin/env bash
    set -euo pipefail
    tag=${GITHUB_REF_NAME:?the name of the tag, such as v1.2.3}
    {{ uv }} version "${tag#v}"
    rm -rf dist
    {{ uv }} build
    {{ uv }} publish

# Compare FastStream alone and the library, live, on an embedded broker
demo:
    {{ uv }} run python -m examples.demo

# Measure the library and FastStream alone in turn
bench *args:
    {{ uv }} run python -m benchmarks "$@"

# Make faults on three brokers and a group of workers; fail if a promise is broken
chaos *args:
    {{ uv }} run python -m chaos "$@"

# Play so many random worlds on a simulated broker, from a random seed (printed) or from a given one
simulate seeds="1000" *first:
    #!/usr/bin/env bash
    set -euo pipefail
    {{ uv }} run python -m tests.simulation --seeds {{ seeds }} ${2:+--first "$2"}
