#!/usr/bin/env bash
# Runs the tests on every Python that poolwatch is for and that is found here: on the PATH as
# python3.10 to python3.13, or in ~/.pyenv/versions. Each has a virtual environment of its own.
#
#   tests/every_python.sh [--only "3.12 3.13"] [--skip "3.11"] [--first] [--short] [PYTEST ARGUMENTS]
#
# --only   these versions, in this order    --skip   not these
# --first  the first of them that is found  --short  leaves out what takes long and is the same on
#                                                    every Python
# Says so, and ends well, where none is found. Environments stay in $EVERY_PYTHON_HOME, by default
# .venv-every.
set -euo pipefail
cd "$(dirname "$0")/.."

versions="3.13 3.12 3.10 3.11"
skipped=""
first=""
arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        --only) versions="$2"; shift 2 ;;
        --skip) skipped="$2"; shift 2 ;;
        --first) first=yes; shift ;;
        --short)
            # Simulations and the soak run the same code on each; the demo crawls for a minute; docs,
            # README and types say the same to every Python.
            for name in simulation soak demo docs typing interruptions; do
                arguments+=("--ignore=tests/test_$name.py")
            done
            for method in spawn forkserver; do
                for name in tests_of_the_standard_library tests_of_executors; do
                    arguments+=("--deselect=tests/test_stdlib.py::test_${name}_pass[$method]")
                done
            done
            shift ;;
        *) arguments+=("$1"); shift ;;
    esac
done

find_python() { # of a version such as 3.13; prints its path
    local candidate
    for candidate in "$(command -v "python$1" || true)" \
            "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        # What is on the PATH may be a shim of a version that is not installed.
        if [ -x "$candidate" ] && "$candidate" -c "import sys, venv, ensurepip
sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

home="${EVERY_PYTHON_HOME:-.venv-every}"
found=0
failed=""
for version in $versions; do
    case " $skipped " in *" $version "*) continue ;; esac
    python="$(find_python "$version")"
    if [ -z "$python" ]; then
        echo "Python $version is not here"
        continue
    fi
    found=$((found + 1))
    echo "Python $version: $python"
    environment="$home/$version"
    [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check -e '.[test]'
    "$environment/bin/python" -m pytest --thorough -p no:cacheprovider ${arguments[@]+"${arguments[@]}"} ||
        failed="$failed $version"
    if [ -n "$first" ]; then break; fi
done

if [ "$found" = 0 ]; then
    echo "no other Python is here: nothing was run"
elif [ -n "$failed" ]; then
    echo "failed on Python$failed"
    exit 1
else
    echo "passed on every Python that is here: $found"
fi
