#!/usr/bin/env bash
# Compiles the programs: build.sh OUTPUT. Another version of clang makes another object that does the same.
set -euo pipefail
output=$(realpath -m "$1")
cd "$(dirname "$0")"
include=$(cc -print-multiarch 2>/dev/null || true)
# Without strict aliasing: fields are read as words.
clang-14 -target bpf -mcpu=v2 -O2 -g0 -fno-ident -fno-strict-aliasing -Wall -Wextra -Werror ${include:+-I/usr/include/$include} -c udp.bpf.c -o "$output"
