# part: s390x         peerpodd and podvm for IBM Z, built with Debian's compiler; what goes over wires, big-endian, under qemu-user

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
        /^BEGIN / { bin = $2 }
        /^END / && $3 != 0 { print bin, "ends with " $3, "FAILED" }
        /^END / && $3 == 0 && $2 ~ /^run-/ { print bin, "ends well", "ok" }
        match($0, /test [^ ]+( - should panic)? \.\.\. (ok|FAILED|ignored)/) {
            split(substr($0, RSTART, RLENGTH), a, " ")
            name = a[2]; verdict = $0 ~ /\.\.\. ok/ ? "ok" : ($0 ~ /\.\.\. FAILED/ ? "FAILED" : "ignored")
            print bin, name, verdict
        }
        /^SKIP / { name = $2; sub(/:$/, "", name); print bin, "s390x-" name, "skipped" }
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
