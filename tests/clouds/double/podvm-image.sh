#!/bin/bash
# The smallest VM image with our podvm in it, made on the spot:
#   podvm-image.sh CACHE IMAGE PODVM [AGENT]
# Debian's cloud kernel with an initial file system (busybox, podvm, an agent) as one EFI program on a FAT
# file system, qcow2. CACHE keeps Debian's packages, unpacked: the only source. Needs apt-get, dpkg-deb,
# objcopy, ldd, qemu-img; not root, unless apt's lists have to be fetched.
#
# For IBM Z with PODVM_ROOT: a directory with Debian's s390x files in it, as deploy/s390x/build makes it, and
# PODVM without symbols already; the disk is one that the machine's boot loader reads. Needs python3 and readelf.
set -euo pipefail
cache=$1 image=$2 podvm=$3 agent=${4:-}
here=$(cd "$(dirname "$0")" && pwd)
arguments=(console=ttyS0 panic=-1 quiet loglevel=4 random.trust_cpu=on)
# What podvm needs of the kernel beside what is built in; the rest follows from these.
modules=(virtio_pci virtio_blk virtio_scsi virtio_net virtio_console virtio_rng sr_mod isofs nls_utf8
    vxlan nf_tables nft_ct nft_fwd_netdev)

work=$(mktemp -d "${TMPDIR:-/tmp}/podvm-image.XXXXXX")
trap 'rm -rf "$work"' EXIT

download() { apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$1"; }
# A package's files, at $cache/PACKAGE.
fetch() {
    local into=$cache/$1
    [ ! -d "$into" ] || return 0
    rm -rf "$into.new" && mkdir -p "$into.new/files"
    (cd "$into.new" && { download "$1" || { apt-get -qq update && download "$1"; }; }) >&2
    dpkg-deb -x "$into.new"/*.deb "$into.new/files"
    rm "$into.new"/*.deb
    mv "$into.new" "$into"
}
kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p'
}
# Where things are: $kernel, $modules_in, $busybox and what makes a disk of them.
from_packages() {
    local package version
    package=$(find "$cache" -maxdepth 1 -name 'linux-image-*-cloud-amd64' -printf '%f\n' | sort -V | tail -n 1)
    if [ -z "$package" ]; then
        package=$(kernel_package)
        [ -n "$package" ] || { apt-get -qq update >&2; package=$(kernel_package); }
    fi
    fetch "$package"
    version=${package#linux-image-}
    kernel=$cache/$package/files/boot/vmlinuz-$version
    modules_in=$cache/$package/files/lib/modules/$version
    for package in systemd-boot-efi mtools; do fetch "$package"; done
    busybox=$packer
    stub=$cache/systemd-boot-efi/files/usr/lib/systemd/boot/efi/linuxx64.efi.stub
    mtools=$cache/mtools/files/usr/bin/mtools
}
from_root() {
    modules_in=$(find "$PODVM_ROOT/usr/lib/modules" -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)
    kernel=$modules_in/vmlinuz busybox=$PODVM_ROOT/usr/bin/busybox
    arguments[0]=console=ttysclp0
}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
fetch busybox-static
packer=$cache/busybox-static/files/bin/busybox
if [ -n "${PODVM_ROOT:-}" ]; then from_root; else from_packages; fi

# Modules in the order in which they are loaded: each after those it needs.
root=$work/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,etc,media/cidata,modules,usr/local/bin}
declare -A file known
while read -r path; do
    name=$(basename "${path%.xz}" .ko)
    file[${name//-/_}]=$path
done < <(find "$modules_in" -name '*.ko' -o -name '*.ko.xz')
plain() { case $1 in *.xz) xz -dc "$1" ;; *) cat "$1" ;; esac; }
number=100
load() {
    local name=${1//-/_} path depends other
    path=${file[$name]:-}
    # What is no module is built in.
    [ -n "$path" ] && [ -z "${known[$name]:-}" ] || return 0
    known[$name]=1
    depends=$(plain "$path" | tr '\0' '\n' | sed -n 's/^depends=//p' | tr ',' ' ')
    for other in $depends; do load "$other"; done
    plain "$path" >"$root/modules/$number-$name.ko"
    number=$((number + 1))
}
for name in "${modules[@]}"; do load "$name"; done

# Programs, without their symbols, and the libraries they name.
cp "$busybox" "$root/bin/busybox"
put() { # program, name
    if [ -n "${PODVM_ROOT:-}" ]; then put_foreign "$@"; return; fi
    objcopy --strip-all "$1" "$root/usr/local/bin/$2"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        [ -e "$root$library" ] || { mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"; }
    done
}
put_foreign() { # program, name
    local library from
    cp "$1" "$root/usr/local/bin/$2"
    mkdir -p "$root/lib"
    for library in ld64.so.1 $(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        from=$(find "$PODVM_ROOT/usr/lib" -maxdepth 2 -name "$library" -print -quit)
        cp -L "$from" "$root/lib/$library"
    done
}
put "$podvm" podvm
[ -z "$agent" ] || put "$agent" agent
cat >"$root/etc/udhcpc" <<'SH'
#!/bin/sh
case $1 in
bound | renew)
    ip address replace "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "${router%% *}" dev "$interface" ;;
esac
SH
# Answers as QEMU's agent does, with an interface that has no hardware address.
cat >"$root/etc/qemu-agent" <<'SH'
#!/bin/sh
until name=$(grep -ls org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name); do sleep 0.2; done
port=${name%/name}
exec <>"/dev/${port##*/}" >&0
# There is nothing to be read until the host has opened its side.
while :; do
    while read -r line; do
        case $line in
        *guest-sync*) id=${line##*\"id\":}; echo "{\"return\":${id%%[!0-9]*}}" ;;
        *guest-network-get-interfaces*)
            mac=$(cat /sys/class/net/eth0/address)
            ip=$(ip -4 -o address show dev eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')
            echo "{\"return\":[{\"name\":\"odd\",\"ip-addresses\":[{\"ip-address-type\":\"ipv4\"," \
                "\"ip-address\":\"10.0.0.1\",\"prefix\":8}]},{\"name\":\"eth0\",\"hardware-address\":\"$mac\"," \
                "\"ip-addresses\":[{\"ip-address-type\":\"ipv4\",\"ip-address\":\"$ip\",\"prefix\":16}]}]}" ;;
        *execute*) echo '{"error":{"class":"CommandNotFound","desc":"not here"}}' ;;
        esac
    done
    sleep 0.2
done
SH
cat >"$root/init" <<'SH'
#!/bin/busybox sh
# The VM's first process: devices, network, user data; then podvm, and the VM is off when that ends.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/local/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /run
for module in /modules/*; do insmod "$module" || echo "no $module"; done
mkdir -p /run/kata-containers
ip link set lo up
ip link set eth0 up
/etc/qemu-agent &
udhcpc -i eth0 -s /etc/udhcpc -t 20 -T 1 -A 1 >/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do
    # On IBM Z the disks come in any order.
    for disk in /dev/sr[0-9] /dev/vd[a-z]; do
        mount -t iso9660 -o ro "$disk" /media/cidata 2>/dev/null && break 2
    done
    sleep 0.5
done
[ -f /media/cidata/user-data ] || echo "no user data; disks are $(cd /sys/block && echo *)"
[ ! -x /usr/local/bin/agent ] || agent --listen unix:///run/kata-containers/agent.sock &
podvm run
echo "podvm has ended with $?"
poweroff -f
SH
chmod 0755 "$root"/{init,etc/udhcpc,etc/qemu-agent}

(cd "$root" && find . -print0 | "$packer" cpio -0 -o -H newc -R 0:0 2>/dev/null) >"$work/initrd"

disk_for_z() { python3 "$here/zipl.py" "$kernel" "$work/initrd" "${arguments[*]}" "$work/disk"; }
disk_for_efi() {
    echo "${arguments[*]}" >"$work/cmdline"
    printf 'ID=peerpodd-test\n' >"$work/osrel"
    objcopy \
        --add-section .osrel="$work/osrel" --change-section-vma .osrel=0x20000 \
        --add-section .cmdline="$work/cmdline" --change-section-vma .cmdline=0x30000 \
        --add-section .linux="$kernel" --change-section-vma .linux=0x2000000 \
        --add-section .initrd="$work/initrd" --change-section-vma .initrd=0x4000000 \
        "$stub" "$work/podvm.efi"
    # Half of it more, for the file system itself.
    truncate -s "$(($(stat -c %s "$work/podvm.efi") / 1048576 + 16))M" "$work/disk"
    "$mtools" -c mformat -i "$work/disk" ::
    "$mtools" -c mmd -i "$work/disk" ::/EFI ::/EFI/BOOT
    "$mtools" -c mcopy -i "$work/disk" "$work/podvm.efi" ::/EFI/BOOT/BOOTX64.EFI
}
if [ -n "${PODVM_ROOT:-}" ]; then disk_for_z; else disk_for_efi; fi
qemu-img convert -q -O qcow2 "$work/disk" "$image"
