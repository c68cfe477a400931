"""Container images without a builder: a layer and a configuration in the archive format of `docker save`.

Run as a program, it makes those that the cluster, flannel and the end-to-end tests use: images.py BINARIES DESTINATION
"""

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from kubernetes import COREDNS, PAUSE

# The names that the manifests have: flannel's own, and dist/kubernetes/kube-flannel.yml.
FLANNEL = "ghcr.io/flannel-io/flannel:v0.28.10"
FLANNEL_CNI_PLUGIN = "ghcr.io/flannel-io/flannel-cni-plugin:v1.9.1-flannel3"
FLANNEL_NODE = "localhost/flannel-node:0.1.0"

E2E = "registry.k8s.io/e2e-test-images"

# Names and tags as in test/utils/image/manifest.go of this version of Kubernetes.
AGNHOST = [f"{E2E}/agnhost:2.63.0", f"{E2E}/agnhost:2.55"]
TOOLS = [f"{E2E}/busybox:1.37.0-1", f"{E2E}/glibc-dns-testing:2.0.0"]

# The programs that tests run in agnhost's image besides agnhost: this machine's own, with their libraries.
TEST_PROGRAMS = ["bash", "curl", "dig", "getent", "ip", "iperf", "nc", "ping", "ss"]

# What flanneld runs.
FLANNEL_PROGRAMS = ["ip", "nft", "xtables-nft-multi"]
IPTABLES = ["iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save"]

PAUSE_SOURCE = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* The first process of a pod: holds its namespaces, reaps orphans, ends when told to. */
static void end(int number) { _exit(0); }
static void reap(int number) { while (waitpid(-1, 0, WNOHANG) > 0); }

int main(void) {
    signal(SIGINT, end);
    signal(SIGTERM, end);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
"""

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")

USERS = """root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
user-defined-in-image:x:1000:1000::/:/bin/sh
"""
GROUPS = "root:x:0:\nnogroup:x:65534:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"


def write_image(destination: Path, rootfs: Path, images: list[tuple[list[str], dict]]) -> None:
    """Writes images that share one layer, as (names, configuration as in `docker inspect`)."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs, arcname=".", filter=owned_by_root)
    layer_digest = hashlib.sha256(layer.getbuffer()).hexdigest()
    files, manifest = {f"{layer_digest}.tar": layer.getvalue()}, []
    for names, settings in images:
        configuration = json.dumps({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], **settings},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        }).encode()
        file = f"{hashlib.sha256(configuration).hexdigest()}.json"
        files[file] = configuration
        manifest.append({"Config": file, "RepoTags": names, "Layers": [f"{layer_digest}.tar"]})
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(destination, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def install(program: str, root: Path) -> None:
    """Copies a program of this machine with the libraries it is linked to."""
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"the image of agnhost needs {program}, see README.md for the packages")
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    copy(path, root / "usr/bin" / program)
    for library in re.findall(r"(/\S+) \(0x", linked):
        copy(library, root / library.lstrip("/"))


def copy(source: str, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, destination)


def make_pause(directory: Path, _binaries: Path, destination: Path) -> None:
    subprocess.run(["cc", "-static", "-Os", "-s", "-x", "c", "-", "-o", str(directory / "pause")],
                   input=PAUSE_SOURCE.encode(), check=True)
    write_image(destination, directory, [([PAUSE], {"Entrypoint": ["/pause"], "User": "65535:65535"})])


def debian_root(directory: Path, programs: list[str]) -> None:
    """A root file system of programs of this machine and busybox."""
    # As on Debian: a library may be found as /lib/… or as /usr/lib/….
    for name in ("bin", "sbin", "lib", "lib64"):
        (directory / "usr" / name).mkdir(parents=True)
        (directory / name).symlink_to(f"usr/{name}")
    for program in programs:
        install(program, directory)
    copy(shutil.which("busybox"), directory / "bin/busybox")
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        # Not as the shell where there is another: busybox' prefers its own applets to programs, and its nc cannot do what
        # tests ask of it.
        if not (directory / "bin" / applet).exists():
            target = "bash" if applet == "sh" and "bash" in programs else "busybox"
            (directory / "bin" / applet).symlink_to(target)
    for name in ("etc", "root", "run", "tmp"):
        (directory / name).mkdir()
    (directory / "tmp").chmod(0o1777)


def make_agnhost(directory: Path, binaries: Path, destination: Path) -> None:
    debian_root(directory, TEST_PROGRAMS)
    # What the C library loads by name to resolve hosts.
    for library in LIBRARIES.glob("libnss_*.so.2"):
        copy(str(library), directory / str(LIBRARIES).lstrip("/") / library.name)
    (directory / "uploads").mkdir()
    (directory / "etc/passwd").write_text(USERS)
    (directory / "etc/group").write_text(GROUPS)
    (directory / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    copy(str(binaries / "agnhost"), directory / "agnhost")
    (directory / "agnhost-2").symlink_to("agnhost")
    # What agnhost shows where a test talks TLS to it. The tests do not look at it.
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3650",
                    "-subj", "/CN=localhost", "-keyout", str(directory / "localhost.key"),
                    "-out", str(directory / "localhost.crt")], check=True, capture_output=True)
    write_image(destination, directory, [
        (AGNHOST, {"Entrypoint": ["/agnhost"], "Cmd": ["pause"]}),
        (TOOLS, {"Cmd": ["sh"]}),
    ])


def make_flannel(directory: Path, binaries: Path, destination: Path) -> None:
    """flannel's image and that of its CNI plugin, with the same paths, on Debian's iptables instead of Alpine's."""
    debian_root(directory, FLANNEL_PROGRAMS)
    for name in IPTABLES:
        (directory / "usr/sbin" / name).symlink_to("../bin/xtables-nft-multi")
    shutil.copytree(LIBRARIES / "xtables", directory / str(LIBRARIES).lstrip("/") / "xtables")
    for name in ("flanneld", "install-conf"):
        copy(str(binaries / name), directory / "opt/bin" / name)
    copy(str(binaries / "flannel-cni"), directory / "flannel")
    write_image(destination, directory, [
        ([FLANNEL], {"Entrypoint": ["/opt/bin/flanneld"]}),
        ([FLANNEL_CNI_PLUGIN], {}),
    ])


def pack(program: Path, destination: Path) -> None:
    """An image with what the Containerfile puts into one, from a flannel-node that is built, and the flannel-cni beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
        copy(str(program), root / "flannel-node")
        copy(str(program.with_name("flannel-cni")), root / "flannel-cni")
        (root / "opt/bin").mkdir(parents=True)
        for name in ("flanneld", "install-conf"):
            (root / "opt/bin" / name).symlink_to("../../flannel-node")
        write_image(destination, root, [([FLANNEL_NODE], {"Entrypoint": ["/flannel-node"]})])


def make_coredns(directory: Path, binaries: Path, destination: Path) -> None:
    copy(str(binaries / "coredns"), directory / "coredns")
    write_image(destination, directory, [([COREDNS], {"Entrypoint": ["/coredns"]})])


def main(binaries: Path, destination: Path) -> None:
    destination.mkdir(exist_ok=True)
    for name, make in {"agnhost": make_agnhost, "coredns": make_coredns, "flannel": make_flannel, "pause": make_pause}.items():
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            root.chmod(0o755)
            make(root, binaries, destination / f"{name}.tar")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
