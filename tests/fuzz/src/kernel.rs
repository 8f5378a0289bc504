//! What the kernel answers.

/// Answers of rtnetlink: whatever they hold, reading them ends.
pub fn route_netlink(data: &[u8]) {
    peerpod_netlink::fuzzing::route_answer(data);
}

/// Answers of nftables.
pub fn nft_netlink(data: &[u8]) {
    peerpod_netlink::fuzzing::nft_answer(data);
}
