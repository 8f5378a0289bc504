//! See `peerpod_fuzz::frame`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(frame);
