//! See `peerpod_fuzz::route_netlink`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(route_netlink);
