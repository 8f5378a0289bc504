//! See `peerpod_fuzz::record`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(record);
