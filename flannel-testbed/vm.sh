#!/usr/bin/env bash
# Runs a command on another kernel: one of Debian's, which is not installed, in a virtual machine without KVM.
#
#   flannel-testbed/vm.sh PACKAGE SECONDS COMMAND PROGRAM=NAME...
#
# PACKAGE is a kernel (linux-image-cloud-amd64), of which the newest is fetched once. In the machine there are busybox, the
# kernel's modules, and each PROGRAM with its libraries as NAME, below /vm unless that is a path; /vm is in PATH. What COMMAND prints
# is printed, and its status is this script's; 124 if SECONDS were not enough, and 125 if the machine ended before, as it does with a
# panic or an oops. The kernel's log follows if it is not 0.
set -euo pipefail
package=$1 seconds=$2 command=$3
shift 3
cache=${VM_CACHE:-$HOME/.cache/flannel-vm}
kernel=$cache/$package
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An archive of a folder, for the kernel to unpack.
archive() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0); }

# Puts a program and the libraries it is linked to into the machine.
put() {
    mkdir -p "$work/root/$(dirname "$2")"
    # Debug information is most of a test program.
    strip --strip-debug -o "$work/root/$2" "$1" 2>/dev/null || cp -L "$1" "$work/root/$2"
    local library
    for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
        [ -e "$work/root$library" ] && continue
        mkdir -p "$work/root$(dirname "$library")"
        cp -L "$library" "$work/root$library"
    done
}

# The kernel and what of its modules has to do with networks.
fetch() {
    local name version folder
    name=$(apt-cache depends "$package" | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -1)
    mkdir "$work/deb" "$work/modules"
    (cd "$work/deb" && apt-get download -qq "${name:-$package}" 2>&1 | grep -v unsandboxed) || true
    dpkg-deb -x "$work"/deb/*.deb "$work/deb"
    version=$(basename "$work"/deb/boot/vmlinuz-*); version=${version#vmlinuz-}
    folder=lib/modules/$version
    mkdir -p "$work/modules/$folder"
    cp "$work/deb/$folder"/modules.{builtin,order}* "$work/modules/$folder"
    (cd "$work/deb" && find "$folder/kernel" -name '*.ko*' -not -path '*/fs/*' -not -path '*/sound/*' -not -path '*/ethernet/*' \
        \( -not -path '*/drivers/*' -o -path '*/drivers/net/*' \) -exec cp --parents -t "$work/modules" {} +)
    depmod -b "$work/modules" "$version"
    # With another name first, what is interrupted leaves nothing that looks whole.
    mkdir -p "$kernel.new"
    cp "$work/deb/boot/vmlinuz-$version" "$kernel.new/vmlinuz"
    archive "$work/modules" >"$kernel.new/modules.cpio"
    mv -T "$kernel.new" "$kernel"
}

[ -d "$kernel" ] || fetch
mkdir -p "$work/root"/{bin,dev,etc,proc,root,run,sys,tmp,var/lib,vm}
put "$(command -v busybox)" bin/busybox
put "$(command -v modprobe)" sbin/modprobe
for program; do
    name=${program##*=}
    [[ $name == /* ]] || name=/vm/$name
    put "${program%=*}" "$name"
done
printf '%s\n' "$command" >"$work/root/command"
echo root:x:0:0::/root:/bin/sh >"$work/root/etc/passwd"
cat >"$work/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export HOME=/root PATH=/vm:/sbin:/bin TERM=dumb
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
mount -t tmpfs run /run && mount -t tmpfs tmp /tmp && mount -t bpf bpf /sys/fs/bpf
ip link set lo up
modprobe tun
{ echo "Linux $(uname -r)"; sh /command; } >/dev/ttyS1 2>&1 </dev/null
echo $? >/dev/ttyS2
poweroff -f
INIT
chmod +x "$work/root/init"
archive "$work/root" | cat "$kernel/modules.cpio" - >"$work/initramfs"

# The machine's time is the number of its instructions, and skips what nobody does anything in: it makes no difference to tests how
# busy this machine is, and they wait for nothing. Emulation takes a whole processor, and is in no hurry. Mitigations are as on other
# machines, because the verifier refuses BPF programs for them.
chrt --idle 0 timeout --foreground "$seconds" qemu-system-x86_64 -accel tcg -icount shift=0,sleep=off -rtc clock=vm -cpu max -smp 1 -m 4096 \
    -nic none -display none -monitor none -no-reboot -kernel "$kernel/vmlinuz" -initrd "$work/initramfs" \
    -append "console=ttyS0 oops=panic panic=-1 quiet loglevel=6 audit=0" \
    -serial "file:$work/log" -serial stdio -serial "file:$work/status" </dev/null 2>"$work/errors" | sed -u 's/\r$//' || ended=$?
status=$(tr -dc 0-9 <"$work/status" || true)
if [ -z "$status" ]; then
    status=125
    [ "${ended:-0}" != 124 ] || { status=124; echo "vm: not done in $seconds s"; }
fi
if [ "$status" != 0 ]; then
    echo "vm: status $status; the kernel's log:"
    cat "$work/errors"
    tail -n 200 "$work/log"
fi
exit "$status"
