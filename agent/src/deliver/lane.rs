//! Where records go, as far as counting is concerned: what has a line of its own in `stats`.

use bytes::Bytes;
use tokio::time::Instant;

use super::wire::Count;

pub trait Lane: Send + Sync {
    fn name(&self) -> &str;
    /// Takes a line.
    fn push(&self, line: Bytes, now: Instant);
    /// All lines so far are to be settled soon. How many these are.
    fn hurry(&self) -> u64;
    /// Are the first so many all sent or dropped?
    fn is_settled(&self, to: u64) -> bool;
    fn count(&self) -> Count;
    /// What was dropped, by cause.
    fn causes(&self) -> Vec<(&'static str, u64)>;
}
