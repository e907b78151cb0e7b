//! Where records go: a format, a target, and a thread that does the waiting.

mod target;
mod writer;

pub use target::{OpenError, Target};
pub use writer::Failure;
