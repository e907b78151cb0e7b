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

/// One library, and the way to find it.
struct Family {
    name: &'static str,
    /// What its file is called up to `.so`, where it is one of its own: for [`is_named_like_one`].
    sonames: &'static [&'static str],
    /// Looks for its cheapest sign first: most files have none, and then [`Refusal::NoLibrary`] is the answer.
    locate: fn(&elf::Elf<'_>) -> Result<Found, Refusal>,
}

/// All that we know, and what they find. Who has names comes first: a later family that finds the same functions
/// adds nothing.
const FAMILIES: [Family; 8] = [
    Family {
        name: "OpenSSL",
        sonames: &["libssl"],
        locate: openssl::locate,
    },
    Family {
        name: "GnuTLS",
        sonames: &["libgnutls"],
        locate: gnutls::locate,
    },
    Family {
        name: "NSS",
        sonames: &["libssl3"],
        locate: nss::locate,
    },
    Family {
        name: "wolfSSL",
        sonames: &["libwolfssl"],
        locate: wolfssl::locate,
    },
    Family {
        name: "Mbed TLS",
        sonames: &["libmbedtls"],
        locate: mbedtls::locate,
    },
    Family {
        name: "s2n-tls",
        sonames: &["libs2n"],
        locate: s2n::locate,
    },
    Family {
        name: "BoringSSL",
        sonames: &[],
        locate: boringssl::locate,
    },
    Family {
        name: "go",
        sonames: &[],
        locate: go::locate,
    },
];

/// Would a TLS library's file have this name? Enough to look at it early, or to say a word when it can't be read;
/// what is probed is never decided by it.
pub fn is_named_like_one(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let is_one = |soname: &&str| {
        let Some(rest) = name.strip_prefix(soname.as_bytes()) else {
            return false;
        };
        // Wheels put a hash there: libssl-8b66dd34.so.3.
        let hash = rest.strip_prefix(b"-").unwrap_or_default();
        let digits = hash.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let rest = match digits.count() {
            0 => rest,
            digits => &hash[digits..],
        };
        rest.strip_prefix(b".so")
            .is_some_and(|rest| matches!(rest, [] | [b'.', ..]))
    };
    FAMILIES
        .iter()
        .any(|family| family.sonames.iter().any(is_one))
}

/// The TLS library in `file` and where to probe it.
pub fn locate(file: &dyn ReadAt) -> Result<Found, Refusal> {
    let elf = elf::Elf::parse(file)?;
    let mut found: Option<Found> = None;
    let mut refused = None;
    for family in FAMILIES {
        match ((family.locate)(&elf), &mut found) {
            (Ok(new), None) => found = Some(new),
            (Ok(new), Some(known)) => known.add(new),
            (Err(Refusal::NoLibrary), _) => {}
            (Err(why @ Refusal::Unsafe(_)), _) => refused = refused.or(Some((family.name, why))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_libraries() {
        for name in [
            "/usr/lib/libssl.so.3",
            "libssl.so",
            "/a/pycurl.libs/libssl-8b66dd34.so.3",
            "libgnutls.so.30",
            "libgnutls-0123abcd.so.30.34.2",
            "libssl3.so",
            "libwolfssl.so.35",
            "libmbedtls.so.14",
            "libs2n.so.1",
        ] {
            assert!(is_named_like_one(name.as_bytes()), "{name}");
        }
        for name in [
            "",
            "/libssl.so.3/other",
            "libssl",
            "libssl-.so",
            "libssl.socket",
            "libsslfoo.so",
            "libgnutls-dane.so.0",
            "libgnutls-openssl.so.27",
            "libgnutlsxx.so.30",
            "libcrypto.so.3",
        ] {
            assert!(!is_named_like_one(name.as_bytes()), "{name}");
        }
    }
}
