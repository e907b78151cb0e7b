//! DEFLATE (RFC 1951) as it comes, alone or in zlib's form (RFC 1950).
//!
//! What comes before a fault is given out, however the bytes are cut. So the decoder writes into its window and
//! nowhere else: what stands between loses what it has no room for when the fault comes.

use miniz_oxide::inflate::{
    TINFLStatus as Status,
    core::{DecompressorOxide, decompress, inflate_flags},
};

use crate::planted::Mistake;

/// How far back a match may lie (RFC 1951, section 2).
const WINDOW: usize = 32 << 10;
/// Bytes of memory of one decoder, about.
pub const WEIGHT: usize = WINDOW + (11 << 10);

/// It is no DEFLATE.
#[derive(Debug)]
pub struct Fault;

pub struct Inflate {
    decoder: Box<DecompressorOxide>,
    /// The last bytes that came out, around its end.
    window: Box<[u8; WINDOW]>,
    at: usize,
    flags: u32,
}

impl Inflate {
    pub fn raw() -> Inflate {
        Inflate::with(0)
    }

    pub fn zlib() -> Inflate {
        Inflate::with(inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER)
    }

    fn with(flags: u32) -> Inflate {
        Inflate {
            decoder: Box::default(),
            window: Box::new([0; WINDOW]),
            at: 0,
            flags: flags | inflate_flags::TINFL_FLAG_HAS_MORE_INPUT,
        }
    }

    /// Another stream begins: it may refer to nothing of the one before.
    pub fn reset(&mut self) {
        self.decoder.init();
        self.window.fill(0);
        self.at = 0;
    }

    /// Decodes all that can be; returns what is behind the stream, and whether it ended.
    pub fn feed<'a>(
        &mut self,
        bytes: &'a [u8],
        out: &mut dyn FnMut(&[u8]),
    ) -> (&'a [u8], Result<bool, Fault>) {
        let mut rest = bytes;
        loop {
            let window = &mut self.window[..];
            let (status, used, made) =
                decompress(&mut self.decoder, rest, window, self.at, self.flags);
            out(&window[self.at..self.at + made]);
            self.at = (self.at + made) % WINDOW;
            rest = &rest[used..];
            match status {
                Status::Done => return (rest, Ok(true)),
                // The window's end was reached.
                Status::HasMoreOutput if !Mistake::Content.is_planted() => {}
                Status::HasMoreOutput | Status::NeedsMoreInput => return (&[], Ok(false)),
                _ => return (rest, Err(Fault)),
            }
        }
    }
}
