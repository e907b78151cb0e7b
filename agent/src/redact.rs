//! The content policy: what of the plaintext may leave the process.
//!
//! [`Content`] is the boundary. A sink can write nothing else of a payload, and only [`Policy::apply`]
//! makes one, so no way around the policy compiles.

use std::fmt;

/// `--content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Lengths and metadata only.
    None,
    /// Every byte as it was.
    Full,
}

impl Policy {
    /// As on the command line and in `stats`.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::None => "none",
            Policy::Full => "full",
        }
    }

    /// What this policy lets out of `plaintext`.
    pub fn apply(self, plaintext: &[u8]) -> Content<'_> {
        match self {
            Policy::None => Content(None),
            Policy::Full => Content(Some(plaintext)),
        }
    }
}

/// The plaintext of a record, after the policy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Content<'a>(Option<&'a [u8]>);

impl<'a> Content<'a> {
    /// `None` if the policy withholds it.
    pub fn bytes(self) -> Option<&'a [u8]> {
        self.0
    }
}

/// The size alone: `{:?}` of a record ends up in panics and logs, a payload must not.
impl fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("Content(withheld)"),
            Some(bytes) => write!(f, "Content({} bytes)", bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_withholds_and_full_keeps() {
        assert_eq!(Policy::None.apply(b"secret").bytes(), None);
        assert_eq!(
            Policy::Full.apply(b"secret").bytes(),
            Some(b"secret".as_slice())
        );
        assert_eq!(Policy::Full.apply(b"").bytes(), Some(b"".as_slice()));
    }

    #[test]
    fn debug_output_holds_no_payload() {
        assert_eq!(
            format!("{:?}", Policy::Full.apply(b"secret")),
            "Content(6 bytes)"
        );
    }
}
