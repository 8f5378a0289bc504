# part: s390x         peerpodd and podvm for IBM Z, built with Debian's compiler; what goes over wires, big-endian, under qemu-user
#
# deep-s390x boots Debian's kernel for IBM Z on an emulated machine and does there what needs a kernel: netlink, nftables,
# VXLAN, the black-box tests of podvm and the spoof matrix; and libvirt boots a guest for IBM Z with podvm.

# Runs the builder; what it says goes to a log.
s390x() { CARGO_TARGET_DIR=$target deploy/s390x/build "$@" 2>>"$out/s390x-build.log"; }

# Builds tests and prints the executable of each, one a line.
s390x_tests() { # cargo test arguments...
    s390x cargo test --locked --no-run --message-format=json "$@" | python3 -c '
import json, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable") and made["profile"]["test"]:
        print(made["executable"])'
}

# Takes result lines out of a log, under names of their own: the requirements are about this machine.
s390x_count() { # label
    awk -v OFS='\t' '
        { sub(/\r$/, "") }
        /^BEGIN / { bin = $2; open = 1 }
        /^END / { open = 0 }
        /^END / && $3 != 0 { print bin, "ends with " $3, "FAILED" }
        match($0, /test [^ ]+( - should panic)? \.\.\. (ok|FAILED|ignored)/) {
            split(substr($0, RSTART, RLENGTH), a, " ")
            name = a[2]; verdict = $0 ~ /\.\.\. ok/ ? "ok" : ($0 ~ /\.\.\. FAILED/ ? "FAILED" : "ignored")
            print bin, name, verdict
        }
        /^SKIP / { name = $2; sub(/:$/, "", name); print bin, "s390x-" name, "skipped" }
        END { if (open) print bin, "does not end", "FAILED" }
    ' "$out/$1.log" | sed 's/^/s390x-/' >"$out/$1.tsv"
    cat "$out/$1.tsv" >>"$results"
    local ok bad skip
    ok=$(grep -c $'\tok$' "$out/$1.tsv")
    bad=$(grep -c $'\tFAILED$' "$out/$1.tsv")
    skip=$(grep -c $'\tskipped$' "$out/$1.tsv")
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
    echo "$1: $ok ok, $bad failed, $skip said SKIP"
    grep -E $'\t(FAILED|skipped)$' "$out/$1.tsv"
    if [ "$bad" -gt 0 ] || [ "$ok" = 0 ]; then tail -n 60 "$out/$1.log"; fi
    [ "$ok" -gt 0 ] || count fail "$1: no test ran"
}

# Not under qemu-user: it has no netlink of netfilter and knows few links; and what waits by the clock does not wait long
# enough for it.
s390x_not_emulated=(
    nft::watch::tests::changes_of_others_are_told_and_own_ones_are_not
    link::tests::a_vxlan_link_goes_by_another_name_into_a_namespace_and_gets_its_own_there
    relay::tests
)
# Of the daemon, what reads and writes bytes.
s390x_of_peerpodd=(pod::record request proto plan hypervisor relay::handover config pki::tests::a)

s390x_crates=(-p peerpod-netlink -p peerpod-tunnel -p podvm -p peerpodd)

part_s390x() {
    local exe skip=() only name debug=$target/s390x/target/s390x-unknown-linux-gnu/debug
    : >"$out/s390x-build.log"
    if ! s390x cargo build --locked -p peerpodd -p podvm || ! s390x_tests "${s390x_crates[@]}" --lib --bins >"$out/s390x-exes"; then
        tail -n 40 "$out/s390x-build.log"; count fail "s390x: build"; return
    fi
    for exe in peerpodd podvm; do check "s390x: $exe is for IBM Z and starts" s390x_is_for_z "$debug/$exe"; done
    s390x_libvirt
    for name in "${s390x_not_emulated[@]}"; do skip+=(--skip "$name"); done
    while read -r exe; do
        name=$(basename "$exe"); name=${name%-*} only=()
        [ "$name" != peerpodd ] || only=("${s390x_of_peerpodd[@]}")
        echo "BEGIN $name"
        # Fewer generated cases: the code is translated, and its files are in memory: each record is synced.
        TMPDIR=/dev/shm PROPTEST_CASES=${PROPTEST_CASES:-16} s390x in qemu-s390x "$exe" --show-output "${only[@]}" "${skip[@]}" 2>&1
        echo "END $name $?"
    done <"$out/s390x-exes" >"$out/s390x.log"
    s390x_count s390x
}

# The daemon with libvirt, against Debian's C library of it for s390x.
s390x_libvirt() {
    local exe=$target/s390x/target/s390x-unknown-linux-gnu/debug/peerpodd
    if ! s390x with libvirt-dev:s390x; then
        echo "SKIP s390x: peerpodd with libvirt: libvirt-dev:s390x cannot be had, see $out/s390x-build.log"
        skipped=$((skipped + 1)); return
    fi
    if s390x cargo build --locked -p peerpodd --features libvirt && grep -q 'libvirt\.so\.0' "$exe"; then
        check "s390x: peerpodd with libvirt is for IBM Z and starts" s390x_is_for_z "$exe"
    else
        tail -n 40 "$out/s390x-build.log"; count fail "s390x: build with libvirt"
    fi
}

# ELF: 64 bits, big-endian, machine 22; and it starts.
s390x_is_for_z() {
    [ "$(od -An -tx1 -j4 -N2 "$1" | tr -d ' ')" = 0202 ] && [ "$(od -An -tx1 -j18 -N2 "$1" | tr -d ' ')" = 0016 ] &&
        s390x in qemu-s390x "$1" --version
}

# A kernel of Debian's with the modules that a network needs, and a first process. What else goes into the machine lies in
# the directory, with /t/list; prints the initrd.
s390x_initrd() { # directory
    local tree=$1 root=$target/s390x/root version
    s390x with linux-image-s390x:s390x busybox-static:s390x kmod cpio findutils || return
    version=$(basename "$root"/usr/lib/modules/*)
    rm -rf "$tree/lib" && mkdir -p "$tree"/{bin,lib/modules/"$version"}
    cp "$root/usr/bin/busybox" "$tree/bin/"
    install -m 0755 tests/s390x/init "$tree/init"
    cp -L "$root"/usr/lib/ld64.so.1 "$root"/usr/lib/s390x-linux-gnu/{libc,libm}.so.6 "$root"/usr/lib/s390x-linux-gnu/libgcc_s.so.1 "$tree/lib/"
    (cd "$root/usr/lib/modules/$version" && cp --parents -r modules.order modules.builtin* kernel/{net,lib,crypto,arch} \
        kernel/drivers/{net,block,virtio,char} kernel/fs/isofs "$tree/lib/modules/$version/" 2>/dev/null)
    find "$tree/lib/modules" -name '*.ko.xz' -exec xz --decompress {} +
    s390x in depmod -b "$tree" "$version" || return
    s390x in sh -c "cd '$tree' && find . | cpio --quiet -o -H newc >'$tree.cpio'" && echo "$tree.cpio"
}

# Boots the machine and waits until it switches itself off; its console goes to the label's log. Without vector
# instructions: under those of QEMU 7.2 packets of pods with IPv6 get lost, and without them none does.
s390x_boot() { # label, initrd, more for qemu...
    local label=$1 initrd=$2; shift 2
    timeout "${PEERPODD_S390X_SECONDS:-3600}" qemu-system-s390x -M s390-ccw-virtio -accel tcg -cpu max,vx=off -smp 2 -m 3072 \
        -nographic -no-reboot -nodefaults -serial stdio -kernel "$target"/s390x/root/usr/lib/modules/*/vmlinuz -initrd "$initrd" \
        -append 'console=ttysclp0 quiet panic=-1' -device virtio-rng-ccw "$@" </dev/null >"$out/$label.log" 2>&1
}

# Puts executables into the machine, and a line for each test into its list.
s390x_put() { # directory, executables...
    local tree=$1 exe; shift
    mkdir -p "$tree/t"
    for exe in "$@"; do s390x in s390x-linux-gnu-strip -o "$tree/t/$(basename "$exe" | sed -E 's/-[0-9a-f]{16}$//')" "$exe"; done
}

# Everything that needs a kernel, on an emulated machine.
deep_s390x() {
    local tree=$target/s390x/machine debug=$target/s390x/target/s390x-unknown-linux-gnu/debug exes initrd
    command -v qemu-system-s390x >/dev/null || { count fail "s390x: qemu-system-s390x is missing: Debian package of that name, in Debian 12 qemu-system-misc"; return; }
    : >"$out/s390x-build.log"
    rm -rf "$tree" && mkdir -p "$tree/t"
    mapfile -t exes < <(s390x_tests "${s390x_crates[@]}" --lib --test network --test spoof --test black_box)
    if ! s390x cargo build --locked -p podvm ||
        ! s390x_put "$tree" "${exes[@]}" "$debug"/podvm; then
        tail -n 40 "$out/s390x-build.log"; count fail "s390x: build"; return
    fi
    # Where podvm's tests look for it. Those that measure memory under floods are left out: they take minutes each there.
    mkdir -p "$tree$debug" && ln -s /t/podvm "$tree$debug/podvm"
    cat >"$tree/t/list" <<'LIST'
peerpod_netlink /t/peerpod_netlink --show-output
network /t/network --show-output
spoof /t/spoof --show-output
black_box /t/black_box --show-output --skip bounds::
LIST
    initrd=$(s390x_initrd "$tree") || { tail -n 40 "$out/s390x-build.log"; count fail "s390x: initrd"; return; }
    s390x_boot deep-s390x "$initrd"
    s390x_count deep-s390x
    s390x_guest "$tree/t/podvm"
}

# A guest of libvirt's, with the podvm that is given.
s390x_guest() {
    local made=$target/s390x/guest
    if [ "$(id -u)" != 0 ] || { ! libvirt_there && ! libvirt_install; }; then
        echo "SKIP s390x: a guest of libvirt's: root and apt-get install --no-install-recommends ${libvirt_packages[*]}"
        skipped=$((skipped + 1)); return
    fi
    mkdir -p "$made" && cp "$1" "$made/podvm" && ln -sfn ../root "$made/root"
    PEERPODD_S390X=$made cargo_test deep-s390x-guest -p peerpod-clouds --features libvirt --test libvirt_boot a_guest_boots_on_an_emulated_ibm_z
    grep -hE '^libvirt: ' "$out/deep-s390x-guest.log"
}
