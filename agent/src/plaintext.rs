//! Plaintext on its way from the kernel to the redact stage.

use std::fmt;

/// Bytes of a stream. They can't be printed or written: no `Display`, no serialisation, and `Debug` tells
/// their number alone. [`Plaintext::reveal`] is for the stage that redacts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Plaintext<'a>(&'a [u8]);

impl<'a> Plaintext<'a> {
    pub const fn new(bytes: &'a [u8]) -> Plaintext<'a> {
        Plaintext(bytes)
    }

    pub const fn len(self) -> usize {
        self.0.len()
    }

    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Without the first `count`.
    pub fn skip(self, count: usize) -> Plaintext<'a> {
        Plaintext(&self.0[count..])
    }

    /// A copy that waits.
    pub fn keep(self) -> Kept {
        Kept(self.0.into())
    }

    /// The bytes.
    pub(crate) const fn reveal(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Plaintext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintext({} bytes)", self.0.len())
    }
}

/// [`Plaintext`] that owns its bytes.
pub struct Kept(Box<[u8]>);

impl Kept {
    pub fn plaintext(&self) -> Plaintext<'_> {
        Plaintext(&self.0)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plaintext().fmt(f)
    }
}
