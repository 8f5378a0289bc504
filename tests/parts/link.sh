# part: link         cuts of the agent link under a streaming exec: no byte lost or repeated
part_link() {
    binaries
    cargo_test link -p peerpod-it --test link
    grep -hE '^link: ' "$out/link.log"
}
# 100 MiB each way under cuts of 1, 5 and 25 s, and the session's state machine under 5,000 seeds.
# Only `tests/run deep`.
deep_link() {
    binaries
    PEERPODD_LINK_MIB=100 PEERPODD_LINK_CUTS="1 5 25" cargo_test link -p peerpod-it --test link
    grep -hE '^link: ' "$out/link.log"
    PROPTEST_CASES=20000 cargo_test link-seeds -p peerpod-tunnel --lib session::tests::cuts
}
