# Faults of the disk under a running daemon, and deaths at crash points with real kills.
# part: crash         kill -9 at every crash point and at 10 pairs of them; a disk that fails at each step, or is full
crash_binaries() {
    # The same packages as always, so that nothing else is built anew; the usual daemon comes back after.
    cargo build --quiet -p peerpodd -p podvm -p peerpod-standin -p peerpodd-demo \
        --features peerpodd/crash-points || return 1
    mkdir -p "$target/debug/crash-points"
    cp "$target"/debug/{peerpodd,podvm,standin-agent} "$target/debug/crash-points/" && binaries
}
part_crash() {
    crash_binaries || { count fail "crash: building the daemon with crash points"; return; }
    PEERPODD_PAIRS=10 cargo_test crash -p peerpod-it --features crash-points --test disk --test crash
    grep -hE '^crash: [0-9]' "$out/crash.log"
}
# kill -9 at every crash point and at 150 pairs of them. Only `tests/run deep`.
deep_crash() {
    crash_binaries || { count fail "crash: building the daemon with crash points"; return; }
    PEERPODD_PAIRS=150 cargo_test deep-crash -p peerpod-it --features crash-points --test crash
    grep -hE '^crash: ' "$out/deep-crash.log"
}
