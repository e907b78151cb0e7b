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
pub(crate) mod image;
mod instruction;
mod mbedtls;
mod nss;
mod openssl;
mod pclntab;
mod rustls;
mod s2n;
mod signature;
pub mod stored;
mod unnamed;
mod wolfssl;

use std::{io, os::fd::BorrowedFd};

use agent_ebpf::{Direction, Shape};

pub use signature::{Named, Signature, Which};

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
const FAMILIES: [Family; 9] = [
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
    Family {
        name: "rustls",
        sonames: &[],
        locate: rustls::locate,
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
    families(&elf::Elf::parse(file)?)
}

/// The same, of a file at `path` that somebody may have a signature for: it is believed before the families are
/// asked, as far as it fits.
pub fn locate_as(
    file: &dyn ReadAt,
    path: &str,
    signatures: &[Signature],
) -> Result<Found, Refusal> {
    let elf = elf::Elf::parse(file)?;
    for signature in signatures {
        if signature.is_for(&elf, path)? {
            return signature.locate(&elf).map(Found::named);
        }
    }
    families(&elf)
}

/// What tells `file` from others: what was found in it may be found by it later.
pub fn fingerprint(file: &dyn ReadAt) -> Result<Vec<u8>, Refusal> {
    elf::Elf::parse(file)?.fingerprint()
}

/// Would `found` be found in `file` today, as far as can be told without a search? Each function begins where it
/// is said to, and the probe belongs at the instruction that is said, which is made of these bytes.
pub fn still_holds(file: &dyn ReadAt, found: &Found) -> Result<bool, Refusal> {
    let elf = elf::Elf::parse(file)?;
    for point in found.points.iter().chain(&found.others) {
        if !signature::still_holds(&elf, point)? {
            return Ok(false);
        }
    }
    Ok(!found.points.is_empty())
}

fn families(elf: &elf::Elf<'_>) -> Result<Found, Refusal> {
    let mut found: Option<Found> = None;
    let mut refused = None;
    for family in FAMILIES {
        elf.renew_budget();
        match ((family.locate)(elf).map(Found::named), &mut found) {
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

/// By what functions are told from others, in a word.
pub mod means {
    /// Their names, and who calls whom.
    pub const SYMBOLS: &str = "symbols";
    /// The errors that they report.
    pub const ERRORS: &str = "errors";
    /// NSS' table of what can be done with a descriptor.
    pub const OPERATIONS: &str = "operations";
    /// Go's table of its functions.
    pub const PCLNTAB: &str = "pclntab";
    /// Rust's tables of the methods of a type.
    pub const VTABLES: &str = "vtables";
    /// Somebody named their places.
    pub const SIGNATURE: &str = "signature";
    /// Those of two libraries, by different ones of these.
    pub const SEVERAL: &str = "several";
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
    /// As in [`FAMILIES`] or a signature, or `libssl` where only the interface is known.
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
    /// By what its functions were told from others: one of [`means`].
    pub located: &'static str,
    /// No name and no table speaks for them: their first calls decide whether they are believed.
    pub on_trial: bool,
}

impl Found {
    /// Its points know whose they are.
    fn named(mut self) -> Found {
        for point in self.points.iter_mut().chain(&mut self.others) {
            point.library = self.library;
        }
        self
    }

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
        if self.located != other.located {
            self.located = means::SEVERAL;
        }
        self.points.extend(other.points);
        self.others.extend(other.others);
        self.partly = self.partly.or(other.partly);
        self.on_trial |= other.on_trial;
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
    /// Whose it is: a file may have several libraries. Set where the library's points are put together.
    pub library: &'static str,
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
    /// What somebody wrote about this file is not so: the library's name there, and why.
    #[error("the signature of {0:?} does not fit: {1}")]
    Signature(&'static str, &'static str),
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{
        image::{
            Piece::{self, Bytes, Call, Jump, JumpThrough},
            image,
        },
        *,
    };

    const PUSH: Piece = Bytes(&[0x55, 0x5d]);
    const RET: Piece = Bytes(&[0xc3]);
    const BODY: &[Piece] = &[PUSH, RET];

    /// One file for each family that symbols or tables show.
    fn libraries() -> Vec<Vec<u8>> {
        let all: [Vec<(&str, &[Piece])>; 6] = [
            vec![
                (".read", BODY),
                (".write", BODY),
                ("SSL_read", &[PUSH, Call(".read"), RET]),
                ("SSL_read_ex", &[PUSH, Call(".read"), RET]),
                ("SSL_write", &[PUSH, Call(".write"), RET]),
                ("SSL_write_ex", &[PUSH, Call(".write"), RET]),
                ("SSL_new", BODY),
            ],
            vec![
                (".receive", BODY),
                (".plt", &[JumpThrough("gnutls_record_send2")]),
                ("gnutls_record_send", &[Jump(".plt")]),
                ("gnutls_record_send2", BODY),
                ("gnutls_record_recv", &[PUSH, Call(".receive"), RET]),
                ("gnutls_record_recv_seq", &[Jump(".receive")]),
            ],
            vec![
                ("SSL_ImportFD", BODY),
                (".close", BODY),
                (".recv", BODY),
                (".send", BODY),
                (".reader", &[Bytes(&[0x31, 0xc9]), Jump(".recv")]),
                (".writer", &[Bytes(&[0x31, 0xc9]), Jump(".send")]),
            ],
            vec![
                (".receive", BODY),
                ("wolfSSL_read", &[PUSH, Jump(".receive")]),
                ("wolfSSL_peek", &[Jump(".receive")]),
                ("wolfSSL_write", BODY),
            ],
            vec![
                ("mbedtls_ssl_handshake", BODY),
                ("mbedtls_ssl_read", &[Call("mbedtls_ssl_handshake"), RET]),
                ("mbedtls_ssl_write", &[Call("mbedtls_ssl_handshake"), RET]),
            ],
            vec![
                (".sendv", BODY),
                (".recv", BODY),
                ("s2n_send", &[PUSH, Call(".sendv"), RET]),
                ("s2n_sendv", &[Jump(".sendv")]),
                (
                    "s2n_recv",
                    &[Bytes(&[0x2e, 0x41, 0x54]), Call(".recv"), RET],
                ),
            ],
        ];
        all.iter().map(|functions| image(functions)).collect()
    }

    /// Asks for what is in `files` with some of their bytes changed. Nobody may panic; what is still found is for
    /// `judge`, with the file that it is in.
    pub(super) fn flip_bits(files: &[Vec<u8>], times: usize, judge: impl Fn(&[u8], &Point)) {
        let mut random = random(0x9e37_79b9_7f4a_7c15);
        for whole in files {
            for _ in 0..times {
                let mut file = whole.clone();
                for _ in 0..=random(4) {
                    let at = random(file.len());
                    file[at] = random(256) as u8;
                }
                for point in locate(&file).iter().flat_map(|found| &found.points) {
                    judge(&file, point);
                }
            }
        }
    }

    /// Numbers below what is asked for, always the same.
    fn random(mut seed: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        }
    }

    /// Files with a library, changed in all ways: none makes us panic or search for long, and what is still found
    /// is what its own functions prove.
    #[test]
    fn ten_thousand_changed_files() {
        let mut libraries = libraries();
        libraries.extend(unnamed::tests::images());
        let mut random = random(0x2545_f491_4f6c_dd1d);
        let edges = [0, 1, 0x7f, 0x80, 0xff];
        let (mut hits, mut longest) = (0, Duration::ZERO);
        for number in 0..10_000 {
            let mut file = libraries[number % libraries.len()].clone();
            assert!(
                number >= libraries.len() || locate(&file).is_ok(),
                "library {number}"
            );
            for _ in 0..=random(6) {
                let size = file.len();
                match random(6) {
                    // Headers and tables are small, so they are changed as often as all the rest.
                    0 => file[random(512.min(size))] = edges[random(edges.len())],
                    1 => file[size - 1 - random(512.min(size))] = edges[random(edges.len())],
                    2 => file[random(size)] = random(256) as u8,
                    3 => {
                        let at = random(size / 8 - 1) * 8;
                        let word = [u64::MAX, 1 << 63, size as u64, 1 << 32][random(4)];
                        file[at..at + 8].copy_from_slice(&word.to_le_bytes());
                    }
                    4 => {
                        let (from, to) = (random(size - 64), random(size - 64));
                        file.copy_within(from..from + 64, to);
                    }
                    _ => file.truncate(size - random(size / 8)),
                }
            }
            let start = Instant::now();
            let found = locate(&file);
            longest = longest.max(start.elapsed());
            let Ok(found) = found else {
                continue;
            };
            hits += 1;
            assert_eq!(
                still_holds(&file, &found),
                Ok(true),
                "file {number}: {found:?}"
            );
            for point in found.points.iter().chain(&found.others) {
                let at = point.offset as usize;
                assert_eq!(file[at..at + 16], point.bytes, "file {number}");
            }
        }
        assert!((1000..9999).contains(&hits), "{hits}");
        assert!(longest < Duration::from_secs(2), "{longest:?}");
    }

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
