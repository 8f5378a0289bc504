//! See `peerpod_fuzz::create_vm`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(create_vm);
