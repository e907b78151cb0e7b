//! Bodies without their content codings (RFC 9110, section 8.4): gzip, deflate, br, zstd, as they come.
//!
//! What a few bytes can grow to has its bound, and after a hole nothing more can be read.

use std::io::Write;

use super::{
    deflate::{self, Inflate},
    head::{Fields, media_name},
};

/// Most codings of one body.
const CODINGS_MAX: usize = 4;
/// So much is decoded at a time, so that what comes out is bounded: the codings grow a thousandfold at most.
const STEP: usize = 512;
/// Largest window of zstd, in powers of two (RFC 9659, section 3).
const ZSTD_WINDOW: u32 = 23;
/// What a window begins with that brotli has no name for (RFC 7932, section 9.1), and that some read as one of up
/// to a gigabyte.
const LARGE_BROTLI: u8 = 0x11;

/// Why a body can't be read, or no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A coding that we don't know.
    Coding,
    /// It is not what its head says.
    Malformed,
    /// It grows beyond the bound, has too many codings or too large a window, or others need the memory.
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
    layers: Vec<Layer>,
    unreadable: Option<Unreadable>,
}

/// One coding, and how much more may come out of it. Each has the bound: what comes out of the last one can be
/// nothing, and take the time of all that was in between.
struct Layer {
    coding: Coding,
    left: u64,
    made: u64,
}

enum Coding {
    Deflated(Box<Deflated>),
    /// zlib's form or, as some send it, without; the first two bytes tell.
    Deflate(Vec<u8>),
    Brotli {
        writer: Box<brotli_decompressor::DecompressorWriter<Vec<u8>>>,
        has_begun: bool,
    },
    Zstd(zstd::stream::write::Decoder<'static, Vec<u8>>),
    Base64(Base64),
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
        let media = fields.get("content-type").unwrap_or_default();
        // The program's own, and so the first.
        let text = media_name(media)
            .starts_with(b"application/grpc-web-text")
            .then(|| Some(Coding::Base64(Base64::default())));
        let codings = names.iter().rev().map(|name| Coding::of(name)).chain(text);
        let layer = |coding: Option<Coding>| {
            Some(Layer {
                coding: coding?,
                left: limit,
                made: 0,
            })
        };
        let layers: Option<Vec<Layer>> = codings.map(layer).collect();
        let unreadable = match layers {
            _ if names.len() > CODINGS_MAX => Some(Unreadable::TooLarge),
            None => Some(Unreadable::Coding),
            Some(_) => None,
        };
        let layers = layers.filter(|_| unreadable.is_none());
        Content {
            layers: layers.unwrap_or_default(),
            unreadable,
        }
    }

    /// Is it as it was sent?
    pub fn is_plain(&self) -> bool {
        self.layers.is_empty() && self.unreadable.is_none()
    }

    pub fn unreadable(&self) -> Option<Unreadable> {
        self.unreadable
    }

    /// Bytes of memory that it takes, about: of a window what was written to it.
    pub fn held(&self) -> usize {
        self.layers.iter().map(Layer::held).sum()
    }

    /// Others need the memory.
    pub fn stop(&mut self) {
        if !self.layers.is_empty() {
            self.give_up(Unreadable::TooLarge);
        }
    }

    fn give_up(&mut self, why: Unreadable) {
        self.layers = Vec::new();
        self.unreadable.get_or_insert(why);
    }

    /// More of the body. What can be read of it goes to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8])) {
        if self.layers.is_empty() {
            if self.unreadable.is_none() {
                out(bytes);
            }
            return;
        }
        for step in bytes.chunks(STEP) {
            if let Err(why) = decode(&mut self.layers, step, out) {
                return self.give_up(why);
            }
        }
    }

    /// A part of the body is missing.
    pub fn hole(&mut self) {
        if !self.layers.is_empty() {
            self.give_up(Unreadable::Hole);
        }
    }
}

/// Through all codings, one after the other.
fn decode(
    layers: &mut [Layer],
    bytes: &[u8],
    out: &mut dyn FnMut(&[u8]),
) -> Result<(), Unreadable> {
    let Some((first, rest)) = layers.split_first_mut() else {
        out(bytes);
        return Ok(());
    };
    // What came before it went wrong was right.
    let (mut decoded, mut done) = first.coding.feed(bytes);
    if decoded.len() as u64 > first.left {
        decoded.truncate(first.left as usize);
        done = Err(Unreadable::TooLarge);
    }
    first.left -= decoded.len() as u64;
    first.made += decoded.len() as u64;
    for step in decoded.chunks(if rest.is_empty() { usize::MAX } else { STEP }) {
        decode(rest, step, out)?;
    }
    done
}

impl Layer {
    fn held(&self) -> usize {
        let (tables, window) = match &self.coding {
            Coding::Deflated(_) => (deflate::WEIGHT, 0),
            Coding::Brotli { .. } => (64 << 10, 1 << 24),
            Coding::Zstd(_) => (192 << 10, 1 << ZSTD_WINDOW),
            Coding::Deflate(_) | Coding::Base64(_) => (0, 0),
        };
        tables + self.made.min(window) as usize
    }
}

impl Coding {
    fn of(name: &[u8]) -> Option<Coding> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        Some(match () {
            () if is("gzip") || is("x-gzip") => {
                Coding::Deflated(Box::new(Deflated::of(Form::Gzip)))
            }
            () if is("deflate") => Coding::Deflate(Vec::new()),
            () if is("br") => {
                let writer = brotli_decompressor::DecompressorWriter::new(Vec::new(), 4096);
                Coding::Brotli {
                    writer: Box::new(writer),
                    has_begun: false,
                }
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
            // The library says by words alone that a window is too large.
            let why = |error: std::io::Error| match error.to_string().contains("too much memory") {
                true => Unreadable::TooLarge,
                false => Unreadable::Malformed,
            };
            (decoded, written.map_err(why))
        }
        match self {
            Coding::Deflated(inflate) => {
                let mut decoded = Vec::new();
                let done = inflate.feed(bytes, &mut decoded);
                (decoded, done)
            }
            Coding::Brotli { writer, has_begun } => {
                if !std::mem::replace(has_begun, true) && bytes[0] & 0x7f == LARGE_BROTLI {
                    return (Vec::new(), Err(Unreadable::Malformed));
                }
                let (mut decoded, done) = through(&mut **writer, bytes, |writer| writer.get_mut());
                // What its buffer had no room for comes without more input.
                while done.is_ok() && writer.write(&[]).is_ok() && !writer.get_ref().is_empty() {
                    decoded.append(writer.get_mut());
                }
                (decoded, done)
            }
            Coding::Zstd(writer) => through(writer, bytes, |writer| writer.get_mut()),
            Coding::Base64(base64) => base64.feed(bytes),
            Coding::Deflate(known) => {
                known.extend_from_slice(bytes);
                let [first, second, ..] = known[..] else {
                    return (Vec::new(), Ok(()));
                };
                let known = std::mem::take(known);
                // RFC 1950, section 2.2: method 8, and a checksum of both bytes.
                let is_zlib = first & 0xf == 8 && u16::from_be_bytes([first, second]) % 31 == 0;
                let form = if is_zlib { Form::Zlib } else { Form::Raw };
                *self = Coding::Deflated(Box::new(Deflated::of(form)));
                self.feed(&known)
            }
        }
    }
}

/// gRPC-Web as text ("Protocol differences vs gRPC over HTTP2"): base64, in as many parts as messages were flushed,
/// each of them padded.
#[derive(Default)]
struct Base64 {
    /// Digits of a group that is not whole.
    group: Vec<u8>,
}

impl Base64 {
    fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, Result<(), Unreadable>) {
        let mut decoded = Vec::with_capacity(bytes.len() / 4 * 3 + 3);
        for byte in bytes {
            self.group.push(*byte);
            let [a, b, c, d] = self.group[..] else {
                continue;
            };
            self.group.clear();
            let group = match (c, d) {
                (b'=', b'=') => &[a, b][..],
                (_, b'=') => &[a, b, c],
                _ => &[a, b, c, d],
            };
            let Some(bits) = group
                .iter()
                .try_fold(0, |bits, digit| Some(bits << 6 | sextet(*digit)?))
            else {
                return (decoded, Err(Unreadable::Malformed));
            };
            let bits: u32 = bits << (6 * (4 - group.len()));
            decoded.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
        }
        (decoded, Ok(()))
    }
}

/// RFC 4648, section 4.
fn sextet(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

/// DEFLATE in one of its forms.
struct Deflated {
    inflate: Inflate,
    /// There was one of gzip before.
    has_member: bool,
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

impl Deflated {
    fn of(form: Form) -> Deflated {
        Deflated {
            inflate: match form {
                Form::Zlib => Inflate::zlib(),
                Form::Gzip | Form::Raw => Inflate::raw(),
            },
            has_member: false,
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
                        _ if self.has_member && header.first() == Some(&0) => {
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
                        self.inflate.reset();
                        self.has_member = true;
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
        let mut keep = |decoded: &[u8]| out.extend_from_slice(decoded);
        let (rest, is_over) = self.inflate.feed(bytes, &mut keep);
        if is_over.map_err(|_| Unreadable::Malformed)? {
            self.stage = match self.form {
                Form::Gzip => Stage::Trailer(8),
                Form::Zlib | Form::Raw => Stage::Done,
            };
        }
        Ok(rest)
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

    /// Some bytes stand for more than is decoded at a time, and the next ones come with them.
    #[test]
    fn runs_of_any_length() {
        let mut text = Vec::new();
        for length in 0..400_u32 {
            let byte = length.wrapping_mul(31) as u8;
            text.resize(text.len() + (length * 97 % 20_011) as usize, byte);
            text.extend_from_slice(&length.to_le_bytes());
        }
        for (coding, coded) in [("gzip", gzip(&text)), ("deflate", raw(&text))] {
            for size in [1, 3, 64, 300, 511, coded.len()] {
                let calls: Vec<&[u8]> = coded.chunks(size).collect();
                let (shown, why) = read(coding, &calls, 1 << 30);
                assert!(
                    shown == text && why.is_none(),
                    "{coding} {size}: {} of {}, {why:?}",
                    shown.len(),
                    text.len()
                );
            }
        }
    }

    /// Messages of gRPC-Web as text, and what the head says they are.
    #[test]
    fn base64_of_any_length_however_it_is_cut() {
        let mut fields = Fields::default();
        fields.push(b"content-type", b"application/grpc-web-text+proto");
        let read = |calls: &[&[u8]]| {
            let mut content = Content::of(&fields, 99);
            let mut all = Vec::new();
            for bytes in calls {
                content.feed(bytes, &mut |more| all.extend_from_slice(more));
            }
            (all, content.unreadable())
        };
        let coded = b"AAAAAAE=YQ==+/+/YWI=YWJj";
        let plain = b"\0\0\0\0\x01a\xfb\xff\xbfababc".to_vec();
        for cut in 0..=coded.len() {
            let (first, second) = coded.split_at(cut);
            assert_eq!(read(&[first, second]), (plain.clone(), None), "{cut}");
        }
        for broken in [&b"YWJj\nYWJj"[..], b"YWJj====", b"YWJjY=Jj"] {
            assert_eq!(
                read(&[broken]),
                (b"abc".to_vec(), Some(Unreadable::Malformed))
            );
        }
        // And compressed by a proxy.
        fields.push(b"content-encoding", b"gzip");
        let mut content = Content::of(&fields, 99);
        let mut all = Vec::new();
        content.feed(&gzip(coded), &mut |more| all.extend_from_slice(more));
        assert_eq!(all, plain);
    }

    /// However it is cut, what came before a fault is read, and no more.
    #[test]
    fn a_fault_comes_behind_the_same_bytes() {
        let text: Vec<u8> = (0..40_u8)
            .flat_map(|byte| vec![byte; 50_000 + usize::from(byte)])
            .collect();
        let raw = raw(&text);
        for at in (0..raw.len()).step_by(7) {
            let mut spoiled = raw.clone();
            spoiled[at] ^= 0x55;
            for (coding, coded) in [
                ("deflate", spoiled.clone()),
                ("deflate, gzip", gzip(&spoiled)),
            ] {
                let whole = read(coding, &[&coded], 1 << 30);
                for size in [1, 5, 100, 400] {
                    let calls: Vec<&[u8]> = coded.chunks(size).collect();
                    let (shown, why) = read(coding, &calls, 1 << 30);
                    assert_eq!(
                        (shown.len(), why),
                        (whole.0.len(), whole.1),
                        "{coding} {at} {size}"
                    );
                    assert!(shown == whole.0, "{coding} {at} {size}");
                }
            }
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

    /// More than the decoder's buffer: 5,000 times x, flushed, by the reference encoder (Node.js 20).
    #[test]
    fn what_a_full_buffer_had_no_room_for_does_not_wait() {
        let coded = [
            0x8b, 0xc3, 0x09, 0xf8, 0x25, 0xf0, 0xe2, 0xb1, 0x40, 0x20, 0x68, 0x01, 0xc0, 0x00,
        ];
        let (shown, why) = read("br", &[&coded], 1 << 20);
        assert_eq!((shown, why), (vec![b'x'; 5000], None));
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
        // Nothing comes out of the last coding: what is behind its end are zeros.
        let coded = gzip(&[&gzip(b"x")[..], &zeros].concat());
        assert_eq!(
            read("gzip, gzip", &[&coded], 1 << 20),
            (b"x".to_vec(), Some(Unreadable::TooLarge))
        );
        // A window of 1 GiB: 0x11, and six bits of its size.
        let large = [0x11, 30, 0x80, 2, 0x80, b'h', b'i', 3];
        assert_eq!(
            read("br", &[&large], 9),
            (vec![], Some(Unreadable::Malformed))
        );
        let many = ["gzip"; CODINGS_MAX + 1].join(", ");
        assert_eq!(
            read(&many, &[b"x"], 9),
            (vec![], Some(Unreadable::TooLarge))
        );
        let mut writer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        writer.window_log(ZSTD_WINDOW + 1).unwrap();
        writer.write_all(&zeros).unwrap();
        assert_eq!(
            read("zstd", &[&writer.finish().unwrap()], 1 << 30),
            (vec![], Some(Unreadable::TooLarge))
        );
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
