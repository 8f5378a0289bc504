//! See `peerpod_fuzz::edit`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(edit);
