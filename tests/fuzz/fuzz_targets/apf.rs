//! See `peerpod_fuzz::apf`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(apf);
