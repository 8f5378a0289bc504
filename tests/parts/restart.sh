# part: restart       restart orders, the next record version and back, kills under execs and packets

# The daemon of the next record version, in next/ beside the real one. Cargo keeps what it compiled for
# either, so the second build only puts the real one back in its place.
next_version() {
    # The same packages as binaries(), or their dependencies would be built once more.
    cargo build --quiet -p peerpodd -p podvm -p peerpod-standin -p peerpodd-demo \
        --features peerpodd/next-version || return
    mkdir -p "$target/debug/next" && cp "$target/debug/peerpodd" "$target/debug/next/peerpodd"
}

part_restart() {
    next_version && binaries || { count fail "restart: build"; return; }
    cargo_test restart -p peerpod-it --features restart --test restart --test restart_load --test upgrade --test versions --test handover
    grep -hE '^(restart|handover): ' "$out/restart.log"
}

# 50 kills of the node process under 50 pods. Only `tests/run deep`.
deep_restart() {
    binaries
    PEERPODD_RESTARTS=50 PEERPODD_PODS=50 \
        cargo_test restart-deep -p peerpod-it --features restart --test restart_load
    grep -hE '^restart: ' "$out/restart-deep.log"
}
