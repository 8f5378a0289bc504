#!/bin/bash
# A real libvirtd in namespaces of its own; run as
#   unshare --mount --net --pid --fork --kill-child --mount-proc bash libvirt.sh DIRECTORY pretended|real
# Everything it writes lies below DIRECTORY (run/libvirt/libvirt-sock, images, nvram, log). With pretended
# leases it plays what guests without a system do not do: each running domain has one. Everything ends
# with it.
set -euo pipefail
dir=$1 leases=$2
mount --make-rprivate /
mkdir -p "$dir"/{run/libvirt,etc,var,cache,log,images,locks}
cat >"$dir/etc/libvirtd.conf" <<'CONF'
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
unix_sock_ro_perms = "0700"
host_uuid = "3b8f6c62-0f0e-4d51-8f0a-6d1f60c0a001"
log_outputs = "3:stderr"
CONF
cat >"$dir/etc/qemu.conf" <<'CONF'
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
CONF
touch "$dir/etc/virtlogd.conf"
mkdir -p "$dir"/etc/{hooks,qemu}
# What the test lets go wrong: a file of that name, which goes with it, or (hang) for as long as it is there.
cat >"$dir/etc/hooks/qemu" <<'HOOK'
#!/bin/bash
case $2 in
prepare)
    [[ ! -e /etc/libvirt/fail ]] || { rm /etc/libvirt/fail; echo "told to fail" >&2; exit 1; }
    [[ ! -e /etc/libvirt/hang ]] || touch /etc/libvirt/hangs
    while [[ -e /etc/libvirt/hang ]]; do sleep 0.1; done ;;
started) [[ ! -e /etc/libvirt/lose ]] || { rm /etc/libvirt/lose; kill -9 $PPID; } ;;
esac
HOOK
chmod 0755 "$dir/etc/hooks/qemu"
mount --bind "$dir/run" /run
mkdir -p /run/lock
mount --bind "$dir/etc" /etc/libvirt
mount --bind "$dir/var" /var/lib/libvirt
mount --bind "$dir/cache" /var/cache/libvirt
mkdir -p /var/log/libvirt && mount --bind "$dir/log" /var/log/libvirt
# No control group of the machine's is touched.
mount -t tmpfs none /sys/fs/cgroup
ip link set lo up
virtlogd --config /etc/libvirt/virtlogd.conf 2>"$dir/log/virtlogd" &
(while :; do libvirtd --config /etc/libvirt/libvirtd.conf 2>>"$dir/log/libvirtd" || true; done) 2>/dev/null &
until virsh -q uri >/dev/null 2>&1; do sleep 0.1; done
virsh -q net-define /dev/stdin >/dev/null <<'XML'
<network><name>default</name><bridge name='virbr0' stp='off' delay='0'/><forward mode='open'/>
<ip address='10.97.0.1' netmask='255.255.0.0'>
<dhcp><range start='10.97.0.2' end='10.97.0.99'/></dhcp></ip></network>
XML
virsh -q net-start default >/dev/null
virsh -q pool-define-as default dir --target "$dir/images" >/dev/null
virsh -q pool-start default >/dev/null
qemu-img create -q -f qcow2 "$dir/images/podvm-base.qcow2" 64M
qemu-img create -q -f raw "$dir/images/data.raw" 1M
qemu-img create -q -f qcow2 "$dir/images/data.qcow2" 1M
virsh -q pool-refresh default >/dev/null
# A pool with less room than a VM needs.
mkdir "$dir/small"
mount -t tmpfs -o size=16M none "$dir/small"
virsh -q pool-define-as small dir --target "$dir/small" >/dev/null
virsh -q pool-start small >/dev/null
qemu-img create -q -f qcow2 "$dir/small/podvm-base.qcow2" 64M
virsh -q pool-refresh small >/dev/null
echo "listening $dir/run/libvirt/libvirt-sock"
# Its first process must bury those that have lost their parents: libvirt waits until they are gone.
[[ $leases = pretended ]] || while :; do sleep 1; done
status=$dir/var/dnsmasq/virbr0.status
while :; do
    text=
    for domain in $(virsh -q list --name 2>/dev/null); do
        mac=$(virsh -q domiflist "$domain" 2>/dev/null | awk '{print $5}') || continue
        [[ $mac ]] || continue
        IFS=: read -r _ _ _ _ high low <<<"$mac"
        text+="${text:+,}{\"ip-address\":\"10.97.$((1 + 0x$high % 250)).$((1 + 0x$low % 250))\","
        text+="\"mac-address\":\"$mac\",\"expiry-time\":4102444800}"
    done
    echo "[$text]" >"$status.new"
    mv "$status.new" "$status"
    sleep 0.1
done
