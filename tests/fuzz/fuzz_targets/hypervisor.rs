//! See `peerpod_fuzz::hypervisor`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(hypervisor);
