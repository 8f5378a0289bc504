//! See `peerpod_fuzz::initdata`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(initdata);
