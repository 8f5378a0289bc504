//! See `peerpod_fuzz::cloud_config`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(cloud_config);
