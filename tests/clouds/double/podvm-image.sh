#!/bin/bash
# The smallest VM image with our podvm in it, made on the spot:
#   podvm-image.sh CACHE IMAGE PODVM [AGENT]
# Debian's cloud kernel with an initial file system (busybox, podvm, an agent) as one EFI program on a FAT
# file system, qcow2. CACHE keeps Debian's packages, unpacked: the only source. Needs apt-get, dpkg-deb,
# objcopy, ldd, qemu-img; not root, unless apt's lists have to be fetched.
set -euo pipefail
cache=$1 image=$2 podvm=$3 agent=${4:-}
arguments=(console=ttyS0 panic=-1 quiet loglevel=4 random.trust_cpu=on)
# What podvm needs of the kernel beside what is built in; the rest follows from these.
modules=(virtio_pci virtio_blk virtio_scsi virtio_net virtio_console virtio_rng sr_mod isofs nls_utf8
    vxlan nf_tables nft_ct nft_fwd_netdev)

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/podvm-image.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A package's files, at $cache/PACKAGE.
fetch() {
    local into=$cache/$1
    [ ! -d "$into" ] || return 0
    rm -rf "$into.new" && mkdir -p "$into.new/files"
    (cd "$into.new" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$1") >&2
    dpkg-deb -x "$into.new"/*.deb "$into.new/files"
    rm "$into.new"/*.deb
    mv "$into.new" "$into"
}
kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p'
}
kernel=$(find "$cache" -maxdepth 1 -name 'linux-image-*-cloud-amd64' -printf '%f\n' | sort -V | tail -n 1)
if [ -z "$kernel" ]; then
    kernel=$(kernel_package)
    [ -n "$kernel" ] || { apt-get -qq update >&2; kernel=$(kernel_package); }
fi
for package in "$kernel" busybox-static systemd-boot-efi mtools; do fetch "$package"; done
version=${kernel#linux-image-}
busybox=$cache/busybox-static/files/bin/busybox
stub=$cache/systemd-boot-efi/files/usr/lib/systemd/boot/efi/linuxx64.efi.stub
mtools=$cache/mtools/files/usr/bin/mtools

# Modules in the order in which they are loaded: each after those it needs.
root=$work/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,etc,media/cidata,modules,usr/local/bin}
declare -A file known
while read -r path; do
    name=$(basename "$path" .ko)
    file[${name//-/_}]=$path
done < <(find "$cache/$kernel/files/lib/modules/$version" -name '*.ko')
number=100
load() {
    local name=${1//-/_} path depends other
    path=${file[$name]:-}
    # What is no module is built in.
    [ -n "$path" ] && [ -z "${known[$name]:-}" ] || return 0
    known[$name]=1
    depends=$(objcopy -O binary --only-section=.modinfo "$path" /dev/stdout | tr '\0' '\n' |
        sed -n 's/^depends=//p' | tr ',' ' ')
    for other in $depends; do load "$other"; done
    cp "$path" "$root/modules/$number-$name.ko"
    number=$((number + 1))
}
for name in "${modules[@]}"; do load "$name"; done

# Programs, without their symbols, and the libraries they name.
cp "$busybox" "$root/bin/busybox"
put() { # program, name
    objcopy --strip-all "$1" "$root/usr/local/bin/$2"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        [ -e "$root$library" ] || { mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"; }
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
    for disk in /dev/sr[0-9] /dev/vd[b-z]; do
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

(cd "$root" && find . -print0 | "$busybox" cpio -0 -o -H newc -R 0:0 2>/dev/null) >"$work/initrd"
echo "${arguments[*]}" >"$work/cmdline"
printf 'ID=peerpodd-test\n' >"$work/osrel"
objcopy \
    --add-section .osrel="$work/osrel" --change-section-vma .osrel=0x20000 \
    --add-section .cmdline="$work/cmdline" --change-section-vma .cmdline=0x30000 \
    --add-section .linux="$cache/$kernel/files/boot/vmlinuz-$version" --change-section-vma .linux=0x2000000 \
    --add-section .initrd="$work/initrd" --change-section-vma .initrd=0x4000000 \
    "$stub" "$work/podvm.efi"

# Half of it more, for the file system itself.
size=$(($(stat -c %s "$work/podvm.efi") / 1048576 + 16))
truncate -s "${size}M" "$work/disk"
"$mtools" -c mformat -i "$work/disk" ::
"$mtools" -c mmd -i "$work/disk" ::/EFI ::/EFI/BOOT
"$mtools" -c mcopy -i "$work/disk" "$work/podvm.efi" ::/EFI/BOOT/BOOTX64.EFI
qemu-img convert -q -O qcow2 "$work/disk" "$image"
