//! See `peerpod_fuzz::gate`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(gate);
