# `uv run` tells its own path in UV: the recipes work too where uv is not on the PATH
uv := quote(env("UV", "uv"))

# Hundreds of tests start a process: what they import is compiled once
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

# The same without changing anything
lint-ci:
    {{ uv }} run ruff format --check
    {{ uv }} run ruff check
    @{{ just_executable() }} _newlines
    {{ uv }} run ty check
    {{ uv }} run lint-imports
    @{{ just_executable() }} types

# That users' type checkers know every public type
types:
    {{ uv }} run pyright --ignoreexternal --verifytypes faststream_concurrent_kafka

# Every text file of the repository ends in one newline (ruff sees to it in Python files alone)
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

# The tests that need no broker, with fewer random examples than `test`: half a minute
test-unit *args:
    {{ uv }} run pytest tests/unit --numprocesses=logical --no-loadscope-reorder "$@"

# All tests, or those that pytest's arguments choose: in Docker Compose where it answers, else on this machine
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

# Run all tests so many times; print what failed, and how long each run took
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

# The same with branch coverage
test-branch *args:
    @{{ just_executable() }} test --cov --cov-branch --cov-report=term-missing "$@"

# Remove what `build` and `test` have started
down:
    docker compose down --volumes --remove-orphans

# Build the version that the tag $GITHUB_REF_NAME names, and publish it
publish:
    #!/usr/bin/env bash
    set -euo pipefail
    tag=${GITHUB_REF_NAME:?the name of the tag, such as v1.2.3}
    {{ uv }} version "${tag#v}"
    rm -rf dist
    {{ uv }} build
    {{ uv }} publish

# Sequential against concurrent, live, on an embedded broker
demo:
    {{ uv }} run python -m examples.demo

# Throughput side by side with FastStream alone
bench *args:
    {{ uv }} run python -m benchmarks "$@"

# Faults on three brokers and a group of workers: what is promised holds, or it fails
chaos *args:
    {{ uv }} run python -m chaos "$@"

# So many random worlds on a simulated broker, from a random seed on that is printed, or from a given one
simulate seeds="1000" *first:
    #!/usr/bin/env bash
    set -euo pipefail
    {{ uv }} run python -m tests.simulation --seeds {{ seeds }} ${2:+--first "$2"}
