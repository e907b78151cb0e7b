//! Bodies without their content codings (RFC 9110, section 8.4): gzip, deflate, br, zstd, as they come.
//!
//! What a few bytes can grow to has its bound, and after a hole nothing more can be read.

use std::io::Write;

use super::head::Fields;

/// Most codings of one body.
const CODINGS_MAX: usize = 4;
/// So much is decoded at a time, so that what comes out is bounded: the codings grow a thousandfold at most.
const STEP: usize = 512;
/// Largest window of zstd, in powers of two (RFC 9659, section 3).
const ZSTD_WINDOW: u32 = 23;

/// Why a body can't be read, or no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A coding that we don't know.
    Coding,
    /// It is not what its head says.
    Malformed,
    /// It grows beyond the bound.
    TooLarge,
    /// A part before is missing.
    Hole,
}

impl Unreadable {
    pub const fn name(self) -> &'static str {
        match self {
            Unreadable::Coding => "unknown_coding",
            Unreadable::Malformed => "malformed",
            Unreadable::TooLarge => "too_large",
            Unreadable::Hole => "hole",
        }
    }
}

/// Takes the codings away from one body.
pub struct Content {
    /// The one that was applied last comes first.
    codings: Vec<Coding>,
    /// How much more may come out.
    left: u64,
    unreadable: Option<Unreadable>,
}

enum Coding {
    Inflate(Box<Inflate>),
    /// zlib's form or, as some send it, without; the first two bytes tell.
    Deflate(Vec<u8>),
    Brotli(Box<brotli_decompressor::DecompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Decoder<'static, Vec<u8>>),
}

impl Content {
    /// Of the body behind a head. At most `limit` bytes come out.
    pub fn of(fields: &Fields, limit: u64) -> Content {
        let transfer = fields.list("transfer-encoding").filter(|name| {
            !name.eq_ignore_ascii_case(b"chunked") && !name.eq_ignore_ascii_case(b"identity")
        });
        let content = fields
            .list("content-encoding")
            .filter(|name| !name.eq_ignore_ascii_case(b"identity"));
        let names: Vec<&[u8]> = content.chain(transfer).take(CODINGS_MAX + 1).collect();
        let codings: Option<Vec<Coding>> =
            names.iter().rev().map(|name| Coding::of(name)).collect();
        let is_known = names.len() <= CODINGS_MAX && codings.is_some();
        Content {
            codings: codings.unwrap_or_default(),
            left: limit,
            unreadable: (!is_known).then_some(Unreadable::Coding),
        }
    }

    /// Is it as it was sent?
    pub fn is_plain(&self) -> bool {
        self.codings.is_empty() && self.unreadable.is_none()
    }

    pub fn unreadable(&self) -> Option<Unreadable> {
        self.unreadable
    }

    /// More of the body. What can be read of it goes to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8])) {
        if self.codings.is_empty() {
            if self.unreadable.is_none() {
                out(bytes);
            }
            return;
        }
        for step in bytes.chunks(STEP) {
            if self.unreadable.is_some() {
                return;
            }
            let left = &mut self.left;
            let decoded = decode(&mut self.codings, step, &mut |bytes| {
                let fits = bytes.len() as u64 <= *left;
                let shown = if fits { bytes.len() } else { *left as usize };
                *left -= shown as u64;
                out(&bytes[..shown]);
                fits.then_some(()).ok_or(Unreadable::TooLarge)
            });
            self.unreadable = decoded.err();
        }
    }

    /// A part of the body is missing.
    pub fn hole(&mut self) {
        if !self.codings.is_empty() {
            self.unreadable.get_or_insert(Unreadable::Hole);
        }
    }
}

/// Through all codings, one after the other.
fn decode(
    codings: &mut [Coding],
    bytes: &[u8],
    out: &mut dyn FnMut(&[u8]) -> Result<(), Unreadable>,
) -> Result<(), Unreadable> {
    let Some((first, rest)) = codings.split_first_mut() else {
        return out(bytes);
    };
    // What came before it went wrong was right.
    let (decoded, done) = first.feed(bytes);
    for step in decoded.chunks(if rest.is_empty() { usize::MAX } else { STEP }) {
        decode(rest, step, out)?;
    }
    done
}

impl Coding {
    fn of(name: &[u8]) -> Option<Coding> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        Some(match () {
            () if is("gzip") || is("x-gzip") => Coding::Inflate(Box::new(Inflate::of(Form::Gzip))),
            () if is("deflate") => Coding::Deflate(Vec::new()),
            () if is("br") => {
                let writer = brotli_decompressor::DecompressorWriter::new(Vec::new(), 4096);
                Coding::Brotli(Box::new(writer))
            }
            () if is("zstd") => {
                let mut writer = zstd::stream::write::Decoder::new(Vec::new()).ok()?;
                writer.window_log_max(ZSTD_WINDOW).ok()?;
                Coding::Zstd(writer)
            }
            () => return None,
        })
    }

    /// What comes of these bytes, and whether no more can.
    fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, Result<(), Unreadable>) {
        fn through<W: Write>(
            writer: &mut W,
            bytes: &[u8],
            decoded: impl Fn(&mut W) -> &mut Vec<u8>,
        ) -> (Vec<u8>, Result<(), Unreadable>) {
            let written = writer.write_all(bytes).and_then(|()| writer.flush());
            let decoded = std::mem::take(decoded(writer));
            (decoded, written.map_err(|_| Unreadable::Malformed))
        }
        match self {
            Coding::Inflate(inflate) => {
                let mut decoded = Vec::new();
                let done = inflate.feed(bytes, &mut decoded);
                (decoded, done)
            }
            Coding::Brotli(writer) => through(&mut **writer, bytes, |writer| writer.get_mut()),
            Coding::Zstd(writer) => through(writer, bytes, |writer| writer.get_mut()),
            Coding::Deflate(known) => {
                known.extend_from_slice(bytes);
                let [first, second, ..] = known[..] else {
                    return (Vec::new(), Ok(()));
                };
                let known = std::mem::take(known);
                // RFC 1950, section 2.2: method 8, and a checksum of both bytes.
                let is_zlib = first & 0xf == 8 && u16::from_be_bytes([first, second]) % 31 == 0;
                let form = if is_zlib { Form::Zlib } else { Form::Raw };
                *self = Coding::Inflate(Box::new(Inflate::of(form)));
                self.feed(&known)
            }
        }
    }
}

/// DEFLATE (RFC 1951) in one of its forms. The crate's writers keep what they have decoded when an error follows;
/// this does not, so what is read does not depend on how the bytes came.
struct Inflate {
    decompress: flate2::Decompress,
    stage: Stage,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Gzip,
    Zlib,
    Raw,
}

enum Stage {
    /// gzip's, as far as it has come (RFC 1952, section 2.3).
    Header(Vec<u8>),
    Body,
    /// gzip's checksum and length: so many bytes are left.
    Trailer(usize),
    /// Whatever comes behind means nothing.
    Done,
}

/// Longest header of gzip. One with a name has some dozens of bytes.
const HEADER_MAX: usize = 4096;

impl Inflate {
    fn of(form: Form) -> Inflate {
        Inflate {
            decompress: flate2::Decompress::new(form == Form::Zlib),
            stage: match form {
                Form::Gzip => Stage::Header(Vec::new()),
                Form::Zlib | Form::Raw => Stage::Body,
            },
            form,
        }
    }

    fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Unreadable> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match &mut self.stage {
                Stage::Header(header) => {
                    header.push(rest[0]);
                    rest = &rest[1..];
                    match is_header(header) {
                        Some(true) => self.stage = Stage::Body,
                        Some(false) if header.len() < HEADER_MAX => {}
                        // Zeros behind a member fill a block.
                        _ if self.decompress.total_in() == 0 && header.first() == Some(&0) => {
                            self.stage = Stage::Done;
                        }
                        _ => return Err(Unreadable::Malformed),
                    }
                }
                Stage::Body => rest = self.inflate(rest, out)?,
                Stage::Trailer(left) => {
                    let used = rest.len().min(*left);
                    *left -= used;
                    rest = &rest[used..];
                    if *left == 0 {
                        // Another member may follow.
                        self.decompress.reset(false);
                        self.stage = Stage::Header(Vec::new());
                    }
                }
                Stage::Done => return Ok(()),
            }
        }
        Ok(())
    }

    /// Returns what is behind the body.
    fn inflate<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Unreadable> {
        let mut rest = bytes;
        let mut buffer = [0; 8192];
        loop {
            let before = (self.decompress.total_in(), self.decompress.total_out());
            let status =
                self.decompress
                    .decompress(rest, &mut buffer, flate2::FlushDecompress::None);
            let used = (self.decompress.total_in() - before.0) as usize;
            let made = (self.decompress.total_out() - before.1) as usize;
            out.extend_from_slice(&buffer[..made]);
            rest = &rest[used..];
            match status.map_err(|_| Unreadable::Malformed)? {
                flate2::Status::StreamEnd => {
                    self.stage = match self.form {
                        Form::Gzip => Stage::Trailer(8),
                        Form::Zlib | Form::Raw => Stage::Done,
                    };
                    return Ok(rest);
                }
                // One more look where the buffer was full: there may be more.
                _ if made == buffer.len() => {}
                _ if rest.is_empty() || used == 0 => return Ok(&[]),
                _ => {}
            }
        }
    }
}

/// Is it a whole header of gzip, or the beginning of one? `None`: neither.
fn is_header(bytes: &[u8]) -> Option<bool> {
    const START: [u8; 3] = [0x1f, 0x8b, 8];
    let known = bytes.len().min(START.len());
    if bytes[..known] != START[..known] {
        return None;
    }
    let whole = || {
        let flags = *bytes.get(3)?;
        let mut rest = bytes.get(10..)?;
        let text = |rest: &mut &[u8]| {
            let end = memchr::memchr(0, rest)?;
            *rest = &rest[end + 1..];
            Some(())
        };
        // FEXTRA, FNAME, FCOMMENT, FHCRC.
        if flags & 4 != 0 {
            let (length, behind) = rest.split_first_chunk()?;
            rest = behind.get(usize::from(u16::from_le_bytes(*length))..)?;
        }
        if flags & 8 != 0 {
            text(&mut rest)?;
        }
        if flags & 16 != 0 {
            text(&mut rest)?;
        }
        if flags & 2 != 0 {
            rest = rest.get(2..)?;
        }
        rest.is_empty().then_some(())
    };
    Some(whole().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(coding: &str) -> Fields {
        let mut fields = Fields::default();
        fields.push(b"Content-Encoding", coding.as_bytes());
        fields
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        writer.write_all(text).unwrap();
        writer.finish().unwrap()
    }

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut writer =
            flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        writer.write_all(text).unwrap();
        writer.finish().unwrap()
    }

    fn raw(text: &[u8]) -> Vec<u8> {
        let mut writer =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        writer.write_all(text).unwrap();
        writer.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(text, 3).unwrap()
    }

    /// `hello hello hello hello` and a line's end, by the reference encoder (Node.js 20).
    const BROTLI: [u8; 23] = [
        0x1b, 0x17, 0x00, 0xf8, 0x8d, 0x94, 0x6e, 0xde, 0x44, 0x55, 0x86, 0xd6, 0x0a, 0x20, 0x6c,
        0x6f, 0x4a, 0x11, 0x79, 0xe2, 0x80, 0xae, 0x16,
    ];
    /// The two events of `what_is_flushed_is_there`, each flushed.
    const BROTLI_EVENTS: [&[u8]; 2] = [
        &[
            0x0b, 0x05, 0x80, 0x64, 0x61, 0x74, 0x61, 0x3a, 0x20, 0x6f, 0x6e, 0x65, 0x0a, 0x0a,
        ],
        &[
            0x50, 0x00, 0x80, 0x5f, 0x5a, 0xe1, 0x8d, 0xee, 0x4e, 0x11, 0xa2, 0x4a, 0x04, 0x60,
            0x0b,
        ],
    ];

    fn read(coding: &str, calls: &[&[u8]], limit: u64) -> (Vec<u8>, Option<Unreadable>) {
        let mut content = Content::of(&fields(coding), limit);
        let mut all = Vec::new();
        for bytes in calls {
            content.feed(bytes, &mut |more| all.extend_from_slice(more));
        }
        (all, content.unreadable())
    }

    fn text() -> Vec<u8> {
        (0..4000_u32)
            .flat_map(|line| format!("line {line} of it\n").into_bytes())
            .collect()
    }

    #[test]
    fn each_coding_however_it_is_cut() {
        let text = text();
        for (coding, coded) in [
            ("gzip", gzip(&text)),
            ("X-GZIP", [gzip(&text[..100]), gzip(&text[100..])].concat()),
            ("deflate", zlib(&text)),
            ("deflate", raw(&text)),
            ("zstd", zstd(&text)),
            ("identity", text.clone()),
            ("gzip, zstd", zstd(&gzip(&text))),
        ] {
            for size in [1, 2, 7, 100, coded.len()] {
                let calls: Vec<&[u8]> = coded.chunks(size).collect();
                assert_eq!(
                    read(coding, &calls, 1 << 20),
                    (text.clone(), None),
                    "{coding} {size}"
                );
            }
        }
        for size in [1, 2, 7, 23] {
            let calls: Vec<&[u8]> = BROTLI.chunks(size).collect();
            let hello = b"hello hello hello hello\n".to_vec();
            assert_eq!(read("br", &calls, 99), (hello, None), "br {size}");
        }
    }

    /// What was flushed is there at once: events of a stream are not to wait for its end.
    #[test]
    fn what_is_flushed_is_there() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        let mut gunzip = Content::of(&fields("gzip"), 1 << 20);
        let mut unzstd = Content::of(&fields("zstd"), 1 << 20);
        let mut unbrotli = Content::of(&fields("br"), 1 << 20);
        for (event, brotli) in ["data: one\n\n", "data: two\n\n"]
            .into_iter()
            .zip(BROTLI_EVENTS)
        {
            gzip.write_all(event.as_bytes()).unwrap();
            gzip.flush().unwrap();
            zstd.write_all(event.as_bytes()).unwrap();
            zstd.flush().unwrap();
            for (content, coded) in [
                (&mut gunzip, std::mem::take(gzip.get_mut())),
                (&mut unzstd, std::mem::take(zstd.get_mut())),
                (&mut unbrotli, brotli.to_vec()),
            ] {
                let mut shown = Vec::new();
                content.feed(&coded, &mut |bytes| shown.extend_from_slice(bytes));
                assert_eq!(shown, event.as_bytes());
            }
        }
    }

    #[test]
    fn what_grows_too_much_stops() {
        let zeros = vec![0; 64 << 20];
        for (coding, coded) in [
            ("gzip", gzip(&zeros)),
            ("zstd", zstd(&zeros)),
            ("gzip, gzip", gzip(&gzip(&zeros))),
        ] {
            let (shown, why) = read(coding, &[&coded], 1 << 20);
            assert_eq!(
                (shown.len(), why),
                (1 << 20, Some(Unreadable::TooLarge)),
                "{coding}"
            );
        }
        let many = ["gzip"; CODINGS_MAX + 1].join(", ");
        assert_eq!(read(&many, &[b"x"], 9), (vec![], Some(Unreadable::Coding)));
    }

    /// A header with everything in it.
    #[test]
    fn headers_of_gzip() {
        let plain = gzip(b"text");
        let extra = [
            &plain[..3],
            &[2 | 4 | 8 | 16],
            &plain[4..10],
            b"\x03\0abcname\0a comment\0\xaa\xbb",
        ];
        let coded = [&extra.concat()[..], &plain[10..], &[0; 9]].concat();
        for size in [1, 3, coded.len()] {
            let calls: Vec<&[u8]> = coded.chunks(size).collect();
            assert_eq!(read("gzip", &calls, 99), (b"text".to_vec(), None), "{size}");
        }
    }

    /// What comes before a fault is read, however the bytes came.
    #[test]
    fn a_fault_takes_nothing_from_what_was_before() {
        let text = text();
        let mut faults = 0;
        for (coding, mut coded) in [
            ("gzip", gzip(&text)),
            ("deflate", zlib(&text)),
            ("deflate", raw(&text)),
        ] {
            let middle = coded.len() / 2;
            coded[middle..middle + 40].fill(0xff);
            let whole = read(coding, &[&coded], 1 << 20);
            faults += usize::from(whole.1 == Some(Unreadable::Malformed));
            assert!(!whole.0.is_empty() && text[..100] == whole.0[..100]);
            for size in [1, 7, 600] {
                let calls: Vec<&[u8]> = coded.chunks(size).collect();
                assert_eq!(read(coding, &calls, 1 << 20), whole, "{coding} {size}");
            }
        }
        // Not every change is one.
        assert!(faults > 0);
    }

    #[test]
    fn what_can_t_be_read_says_so() {
        for coding in ["gzip", "zstd", "br", "deflate"] {
            let (_, why) = read(
                coding,
                &[b"this is no such thing, whatever the head says of it"],
                99,
            );
            assert_eq!(why, Some(Unreadable::Malformed), "{coding}");
        }
        assert_eq!(read("dcb", &[b"x"], 9), (vec![], Some(Unreadable::Coding)));

        let text = text();
        let coded = gzip(&text);
        let mut content = Content::of(&fields("gzip"), 1 << 20);
        let mut shown = Vec::new();
        content.feed(&coded[..500], &mut |bytes| shown.extend_from_slice(bytes));
        content.hole();
        content.feed(&coded[600..], &mut |_| panic!("read behind a hole"));
        assert!(text.starts_with(&shown) && !shown.is_empty());
        assert_eq!(content.unreadable(), Some(Unreadable::Hole));
        // Plain text has no such trouble.
        let mut content = Content::of(&Fields::default(), 9);
        content.hole();
        assert!(content.is_plain());
    }
}
