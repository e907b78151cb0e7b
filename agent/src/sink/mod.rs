//! Where records go: a format, a target, and a thread that does the waiting.

mod target;

pub use target::{OpenError, Target};
