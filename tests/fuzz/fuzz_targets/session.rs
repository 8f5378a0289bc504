//! See `peerpod_fuzz::session`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(session);
