//! Vortex: the plaintext of TLS traffic, from the kernel to a record.

pub mod config;
pub mod escape;
pub mod locate;
pub mod record;
pub mod redact;
pub mod sink;
