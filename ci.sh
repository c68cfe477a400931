#!/usr/bin/env bash
# Everything that has to hold, in parts: ./ci.sh runs them all, ./ci.sh PART ... runs some; ./ci.sh static builds for a release.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

# command -> the Debian package that has it
tools=(cc:gcc etcd:etcd-server etcdctl:etcd-client ip:iproute2 iptables:iptables nft:nftables unshare:util-linux)

part_tools() {
    local missing=()
    for tool in "${tools[@]}"; do
        command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
    done
    command -v cargo >/dev/null || { echo "missing: cargo 1.89 or newer (https://rustup.rs)"; exit 1; }
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
    else
        echo "missing Debian packages: ${missing[*]}"
        echo "install them: sudo apt-get install ${missing[*]}"
        exit 1
    fi
}

part_fmt() { cargo fmt --all --check; }

part_clippy() {
    cargo clippy --workspace --all-targets --all-features -- -D warnings
    cargo clippy --workspace --no-default-features -- -D warnings
}

part_test() { cargo test --workspace --all-features; }

part_doc() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --document-private-items
    part_links
}

# Every relative link in a Markdown file leads to a file of the tree.
part_links() {
    local bad=0 file target
    while IFS=: read -r file target; do
        target=${target#](}; target=${target%)}; target=${target%%#*}
        [[ -z $target || $target == *://* ]] && continue
        [ -e "$(dirname "$file")/$target" ] || { echo "$file: broken link to $target"; bad=1; }
    done < <(git ls-files '*.md' | xargs grep -oH ']([^)]*)')
    return $bad
}

# flannel-core decides and does no I/O: its dependencies show it.
part_pure() {
    local tree
    tree=$(cargo tree -p flannel-core -e normal --prefix none)
    if grep -E '^(mio|socket2|nix|rustix|libc|netlink|rtnetlink|tonic|kube|hyper)[ -]' <<<"$tree"; then
        echo "flannel-core depends on an I/O crate"; return 1
    fi
}

# The tests that need namespaces, in a user namespace where nobody is root for real.
part_netns() {
    cargo test --workspace --all-features --no-run
    local log; log=$(mktemp)
    if unshare -rn true 2>/dev/null; then
        unshare -rn cargo test --offline --workspace --all-features --test 'netns' --test 'e2e' -- --ignored 2>&1 | tee "$log"
    elif [ "$(id -u)" = 0 ]; then
        cargo test --offline --workspace --all-features --test 'netns' --test 'e2e' -- --ignored 2>&1 | tee "$log"
    else
        echo "this system lets nobody but root make namespaces: run ./ci.sh netns as root"; return 1
    fi
    local ran; ran=$(tests_passed "$log")
    rm -f "$log"
    echo "netns tests that ran: $ran"
    [ "$ran" -gt 0 ]
}

# What a user namespace with its single user cannot show.
part_root() {
    if [ "$(id -u)" = 0 ]; then
        cargo test -p flannel-node --test root -- --ignored
    else
        echo "not root: the tests of a node under another user did not run"
    fi
}

# The service file, as far as systemd can check it without being started.
part_dist() {
    if ! command -v systemd-analyze >/dev/null; then
        echo "no systemd-analyze here: the service file was not checked"; return
    fi
    local folder; folder=$(mktemp -d)
    sed 's|^ExecStart=/usr/bin/flannel-node$|ExecStart=/bin/true|' dist/flannel-node.service >"$folder/flannel-node.service"
    local said; said=$(systemd-analyze verify "$folder/flannel-node.service" 2>&1) || true
    if grep -F flannel-node.service <<<"$said"; then
        echo "systemd does not take the service file as it is"; return 1
    fi
    # 10 is a service with all rights.
    systemd-analyze security --offline=true --threshold=30 "$folder/flannel-node.service" | tail -1
    rm -rf "$folder"
}

# The program as one file that needs no other, in target/static.
part_static() {
    local target; target=$(rustc -vV | sed -n 's/^host: //p')
    local out=${CARGO_TARGET_DIR:-target}/$target/release/flannel-node
    cargo rustc --release --locked -p flannel-node --bin flannel-node --target "$target" -- -C target-feature=+crt-static
    ldd "$out" 2>&1 | grep -E 'statically linked|not a dynamic executable'
    mkdir -p target/static
    cp "$out" target/static/flannel-node
    # Where there is nothing but the program it still runs.
    if unshare -r true 2>/dev/null; then
        unshare -r chroot target/static /flannel-node --version
    else
        target/static/flannel-node --version
    fi
}

# How many tests passed according to a log of cargo test.
tests_passed() { awk '/^test result: ok/ { sum += $4 } END { print sum + 0 }' "$1"; }

# The store in etcd, on etcds that the tests start on loopback.
part_etcd() {
    local log; log=$(mktemp)
    cargo test -p flannel-store --all-features --test etcd -- --ignored 2>&1 | tee "$log"
    local ran; ran=$(tests_passed "$log")
    rm -f "$log"
    echo "etcd tests that ran: $ran"
    [ "$ran" -gt 0 ]
}

# Release without what makes only the result small: these tests are built to be run once.
optimised() {
    local verb=$1; shift
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo "$verb" --release "$@"
}

# The lease protocol: all schedules of a small cluster, and random ones of clusters of up to 100 nodes.
part_simulate() {
    optimised test -p flannel-store --all-features --lib --test cluster --no-run
    optimised test -q -p flannel-store --all-features --lib model -- --nocapture | grep -E '^[0-9]+ nodes|^test result'
    echo "10,000 schedules, the same in every run"
    FLANNEL_SIM_RUNS=10000 optimised test -q -p flannel-store --all-features --test cluster -- --nocapture
    local first=$(($(date +%s) * 1000))
    echo "1,000 schedules of this run: FLANNEL_SIM_FIRST=$first"
    FLANNEL_SIM_FIRST=$first FLANNEL_SIM_RUNS=1000 optimised test -q -p flannel-store --all-features --test cluster -- --nocapture whatever
}

# The first command of the README, as whoever runs this and without root.
part_demo() {
    cargo run --quiet -p flannel-node -- demo
    if unshare -rn true 2>/dev/null; then
        unshare -rn cargo run --offline --quiet -p flannel-node -- demo
    fi
}

all=(tools fmt clippy test doc pure dist simulate netns root etcd demo)
[ $# -gt 0 ] || set -- "${all[@]}"
for part; do
    declare -F "part_$part" >/dev/null || { echo "no such part: $part (there are: ${all[*]})"; exit 2; }
    echo "=== $part"
    started=$SECONDS
    "part_$part"
    echo "=== $part: ok, $((SECONDS - started)) s"
done
