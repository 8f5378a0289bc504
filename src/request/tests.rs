//! What reading requests promises.
