//! What the targets share: choices that an input makes, calls and how they are cut, what was told of them, how much
//! memory that took; and what the whole line is played on.

pub mod hpack;
pub mod judge;
pub mod machine;
pub mod memory;
pub mod talk;
pub mod told;
pub mod world;

/// Is this one of the few inputs that are played for long? Most would say nothing more by that.
pub fn is_long(input: &[u8]) -> bool {
    input
        .iter()
        .map(|byte| usize::from(*byte))
        .sum::<usize>()
        .is_multiple_of(97)
}

/// An input as a row of choices. Behind its end all of them are 0, so each input means something.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    pub fn chance(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        let number = match bound {
            0..=256 => self.byte().into(),
            _ => usize::from(u16::from_le_bytes([self.byte(), self.byte()])),
        };
        number % bound.max(1)
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Up to `most` bytes, as they are.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }

    /// The same, as lower-case letters: no format has a meaning for these.
    pub fn letters(&mut self, most: usize) -> String {
        let bytes = self.bytes(most);
        bytes
            .iter()
            .map(|byte| (b'a' + byte % 26) as char)
            .collect()
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// Choices that are made now, of something that comes last: by then there may be none left.
    pub fn ahead(&mut self) -> [u8; 8] {
        self.array()
    }

    /// A part of so many bytes, not an empty one.
    pub fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length);
        start..start + 1 + self.below(length - start)
    }
}
