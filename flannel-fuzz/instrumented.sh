#!/bin/sh
# What cargo calls instead of the compiler for the crates of the workspace: it tells libFuzzer where a program has been. cargo-fuzz sets the
# same, for all crates, and a sanitizer that safe code can do without.
counted=-Cllvm-args=-sanitizer-coverage
exec "$@" -Copt-level=1 -Cpasses=sancov-module $counted-level=4 $counted-inline-8bit-counters $counted-pc-table $counted-trace-compares
