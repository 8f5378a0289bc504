//! See `peerpod_fuzz::session_export`.
#![cfg_attr(fuzzing, no_main)]

peerpod_fuzz::target!(session_export);
