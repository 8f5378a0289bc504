//! The life of pods in a world of fakes, on paused time.

mod alive;
mod clock;
mod create;
mod fakes;
mod follow;
mod found;
mod harness;
mod interruption;
mod mortem;
mod place;
mod restart;
mod start;
mod stop;
mod watch;
