//! See `peerpod_fuzz::wire`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(wire);
