//! One file for each goal that is measured.

pub(crate) mod p1;
pub(crate) mod p14;
pub(crate) mod p2;
pub(crate) mod p3;
pub(crate) mod p4;
pub(crate) mod p5;
pub(crate) mod p6;
pub(crate) mod p8;
pub(crate) mod p9;
