# 200 kills of the daemon at random moments under 20 streaming pods. Only `tests/run deep`.
deep_kills() {
    binaries
    PEERPODD_KILLS=200 PEERPODD_PODS=20 cargo_test kills -p peerpod-it --test kills
    grep -hE '^kills: ' "$out/kills.log"
}
