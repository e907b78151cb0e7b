//! Finds the functions to probe in a file: bytes in, points out. No process, no path, no clock.
//!
//! The file belongs to somebody else. It may be hostile, huge, or change while we read it, so it is read by
//! position in small pieces, every number in it is checked before use, and all work has a bound. What comes
//! out is a proposal: whoever attaches compares [`Point::bytes`] again.

mod boringssl;
mod carrier;
mod elf;
mod function;
mod gnutls;
mod go;
#[cfg(test)]
mod image;
mod instruction;
mod mbedtls;
mod nss;
mod openssl;
mod pclntab;
mod s2n;
mod wolfssl;

use std::{io, os::fd::BorrowedFd};

use agent_ebpf::{Direction, Shape};

/// One way to find one library. Each looks for its cheapest sign first: most files have none, and then
/// [`Refusal::NoLibrary`] is the answer.
type Family = fn(&elf::Elf<'_>) -> Result<Found, Refusal>;

/// All of them, and what they find. Who has names comes first: a later family that finds the same functions
/// adds nothing.
const FAMILIES: [(&str, Family); 8] = [
    ("OpenSSL", openssl::locate),
    ("GnuTLS", gnutls::locate),
    ("NSS", nss::locate),
    ("wolfSSL", wolfssl::locate),
    ("Mbed TLS", mbedtls::locate),
    ("s2n-tls", s2n::locate),
    ("BoringSSL", boringssl::locate),
    ("go", go::locate),
];

/// The TLS library in `file` and where to probe it.
pub fn locate(file: &dyn ReadAt) -> Result<Found, Refusal> {
    let elf = elf::Elf::parse(file)?;
    let mut found: Option<Found> = None;
    let mut refused = None;
    for (library, family) in FAMILIES {
        match (family(&elf), &mut found) {
            (Ok(new), None) => found = Some(new),
            (Ok(new), Some(known)) => known.add(new),
            (Err(Refusal::NoLibrary), _) => {}
            (Err(why @ Refusal::Unsafe(_)), _) => refused = refused.or(Some((library, why))),
            (Err(why), _) => return Err(why),
        }
    }
    match (found, refused) {
        (None, None) => Err(Refusal::NoLibrary),
        (None, Some((_, why))) => Err(why),
        (Some(found), Some((library, _))) if found.library != library => Ok(Found {
            partly: found.partly.or(Some(UNSEEN)),
            ..found
        }),
        // Or the one that was refused is known by its names.
        (Some(found), _) => Ok(found),
    }
}

const SEVERAL: &str = "several TLS libraries";
const UNSEEN: &str = "it may have another TLS library inside, which is not seen";

/// Positioned reads of a file that somebody else owns and may change or truncate at any time.
pub trait ReadAt {
    /// Fills `buf` from `offset`, or fails: a short read is an error.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Size in bytes.
    fn size(&self) -> io::Result<u64>;
}

/// A file by its descriptor. By position only: whoever sent the descriptor has the same open file, and
/// its offset.
pub struct Pread<'a>(pub BorrowedFd<'a>);

impl ReadAt for Pread<'_> {
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pread(self.0, &mut *buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(self.0)?.st_size as u64)
    }
}

/// A TLS library and its points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As in [`FAMILIES`], or `libssl` where only the interface is known.
    pub library: &'static str,
    /// `3.0.19`, where the file says it.
    pub version: Option<String>,
    /// No call passes two of them.
    pub points: Vec<Point>,
    /// Functions that carry no plaintext and say something about a connection, as far as they are known:
    /// where its object is made, cleared and freed, where it shakes hands, where its server is named. And where
    /// the kernel sends a file.
    pub others: Vec<Point>,
    /// Who is not seen, if not all users of the library are.
    pub partly: Option<&'static str>,
}

impl Found {
    /// One more library of the same file, unless it is this one.
    fn add(&mut self, other: Found) {
        let is_known = |point: &Point| {
            let mut points = self.points.iter();
            points.any(|known| known.function_offset == point.function_offset)
        };
        if other.points.iter().any(is_known) {
            return;
        }
        self.library = SEVERAL;
        self.version = None;
        self.points.extend(other.points);
        self.others.extend(other.others);
        self.partly = self.partly.or(other.partly);
    }
}

/// One place to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// File offset of the probed instruction.
    pub offset: u64,
    /// File offset of the function's first byte; `function_offset <= offset`, and of all but Go's functions
    /// `offset - 12 < function_offset`.
    pub function_offset: u64,
    /// Name in the library's source: `ssl_read_internal`.
    pub function: &'static str,
    pub direction: Direction,
    pub shape: Shape,
    pub instruction: Instruction,
    /// [`Shape::Freed`]: where in the object the number of its owners is. [`Shape::Passed`]: how far behind the
    /// point Go's function is that closes a TCP connection, 0 if that is of no use. Else 0.
    pub detail: u32,
    /// The bytes at `offset`, compared again before the probe is placed.
    pub bytes: [u8; 16],
}

/// What the kernel does with the probed instruction (arch/x86/kernel/uprobes.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    Emulated,
    /// Single-stepped out of line: about ten times dearer.
    Stepped,
}

/// Why a file has no points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The usual answer.
    #[error("no TLS library that we know")]
    NoLibrary,
    #[error("not an ELF program or library")]
    NotElf,
    #[error("a 32-bit file")]
    Bits32,
    #[error("made for a machine other than x86-64")]
    ForeignMachine,
    #[error("the file ends before its headers say")]
    Truncated,
    #[error("the file contradicts itself: {0}")]
    Malformed(&'static str),
    #[error("the file can't be read: {0}")]
    Unreadable(io::ErrorKind),
    /// A TLS library is there and no safe place for a probe; the sign that failed.
    #[error("a TLS library, but {0}")]
    Unsafe(&'static str),
}
