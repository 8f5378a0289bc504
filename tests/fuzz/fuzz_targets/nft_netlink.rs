//! See `peerpod_fuzz::nft_netlink`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(nft_netlink);
