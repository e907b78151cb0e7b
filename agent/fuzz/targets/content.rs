//! Content codings: any body of any codings, and bodies that are known.
//!
//! An input is four bytes that say how the body is cut, one that says what the rest is, one of codings, and the
//! rest: a body, or choices that make one. Some are bodies of gRPC-Web as text.
#![no_main]

use std::io::Write as _;

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use libfuzzer_sys::fuzz_target;
use play::{Choices, memory, talk::pieces};
use vortex_agent::protocol::{
    content::{Content, Unreadable},
    head::Fields,
};

const NAMES: [&str; 7] = [
    "gzip", "deflate", "br", "zstd", "x-gzip", "identity", "snappy",
];
/// Most that comes out of a body.
const LIMIT: u64 = 64 << 10;
/// Windows, and what one step makes.
const KEPT_MAX: usize = 48 << 20;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    let what = choices.byte();
    let is_text = what & 2 != 0;
    match what & !2 {
        0 => anything(&mut choices, is_text, cuts),
        _ => known(&mut choices, is_text, cuts),
    }
});

fn anything(choices: &mut Choices<'_>, is_text: bool, cuts: [u8; 4]) {
    let mut names = vec![choices.of(&NAMES)];
    while choices.below(4) == 1 && names.len() < 6 {
        names.push(choices.of(&NAMES));
    }
    let body = choices.0;
    let fields = fields(&names, is_text);
    let whole = play(&fields, [body]);
    let cut = play(&fields, pieces(body, cuts));
    // These two keep what they have made in a call that ends with a fault.
    let keeps = names.iter().any(|name| matches!(*name, "br" | "zstd"));
    match keeps && whole.1 == Some(Unreadable::Malformed) {
        true => assert!(cut.0.starts_with(&whole.0) || whole.0.starts_with(&cut.0)),
        false => assert_eq!(whole, cut),
    }
    assert!(whole.0.len() as u64 <= LIMIT.max(body.len() as u64));
}

/// Of a body in these codings, and first, if it `is_text`, in base64.
fn fields(names: &[&str], is_text: bool) -> Fields {
    let mut fields = Fields::default();
    fields.push(b"Content-Encoding", names.join(", ").as_bytes());
    if is_text {
        fields.push(b"Content-Type", b"application/grpc-web-text+proto");
    }
    fields
}

/// What can be read, and why no more.
fn play<'a>(
    fields: &Fields,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<u8>, Option<Unreadable>) {
    let before = memory::live();
    let mut content = Content::of(fields, LIMIT);
    let mut decoded = Vec::new();
    for piece in pieces {
        content.feed(piece, &mut |bytes| decoded.extend_from_slice(bytes));
        let kept = memory::live().saturating_sub(before + decoded.capacity());
        assert!(kept <= KEPT_MAX, "{kept} bytes are kept");
    }
    (decoded, content.unreadable())
}

fn known(choices: &mut Choices<'_>, is_text: bool, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    // Some that is much more than it takes to say, and than a window holds.
    let plain = match choices.below(3) {
        0 => vec![choices.byte(); choices.below(40 << 10)],
        _ => choices.bytes(400),
    };
    let (mut names, mut body) = (Vec::new(), plain.clone());
    if is_text {
        body = base64(choices, &body);
    }
    for _ in 0..1 + choices.below(3) {
        let name = choices.of(&["gzip", "deflate", "br", "zstd", "deflate", "gzip"]);
        body = coded(choices, name, &body);
        names.push(name);
    }
    let truth = (plain.clone(), None);
    let fields = fields(&names, is_text);
    assert_eq!(play(&fields, [&body[..]]), truth, "{names:?}");
    assert_eq!(play(&fields, pieces(&body, cuts)), truth, "{names:?} cut");

    let hole = Choices(&ahead).range(body.len());
    let (mut content, mut decoded) = (Content::of(&fields, LIMIT), Vec::new());
    content.feed(&body[..hole.start], &mut |bytes| {
        decoded.extend_from_slice(bytes)
    });
    content.hole();
    content.feed(&body[hole.end..], &mut |bytes| {
        decoded.extend_from_slice(bytes)
    });
    assert!(plain.starts_with(&decoded));
    assert_eq!(content.unreadable(), Some(Unreadable::Hole));
}

fn coded(choices: &mut Choices<'_>, name: &str, plain: &[u8]) -> Vec<u8> {
    let fast = Compression::fast();
    match name {
        "gzip" => {
            // Members may follow each other, and have names.
            let (first, second) = plain.split_at(choices.below(plain.len() + 1));
            let mut coded = Vec::new();
            for part in [first, second] {
                let mut gzip = flate2::GzBuilder::new();
                if choices.chance() {
                    gzip = gzip.filename("a").comment("b").extra("c");
                }
                let mut encoder: GzEncoder<Vec<u8>> = gzip.write(Vec::new(), fast);
                encoder.write_all(part).expect("memory");
                coded.extend(encoder.finish().expect("memory"));
            }
            coded
        }
        "deflate" if choices.chance() => {
            let mut encoder = ZlibEncoder::new(Vec::new(), fast);
            encoder.write_all(plain).expect("memory");
            encoder.finish().expect("memory")
        }
        "deflate" => {
            let mut encoder = DeflateEncoder::new(Vec::new(), fast);
            encoder.write_all(plain).expect("memory");
            encoder.finish().expect("memory")
        }
        "zstd" => zstd::encode_all(plain, 1).expect("memory"),
        _ => brotli(plain),
    }
}

/// In two parts, each of which is padded.
fn base64(choices: &mut Choices<'_>, plain: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (first, second) = plain.split_at(choices.below(plain.len() + 1));
    let mut coded = Vec::new();
    for group in first.chunks(3).chain(second.chunks(3)) {
        let mut three = [0; 3];
        three[..group.len()].copy_from_slice(group);
        let [a, b, c] = three.map(u32::from);
        let bits = a << 16 | b << 8 | c;
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            coded.push(if at > group.len() { b'=' } else { digit });
        }
    }
    coded
}

/// Stored meta-blocks (RFC 7932, section 9.2): a window of 64 KiB, then for each that it is not the last, four
/// nibbles of length less one, and that it is stored; bytes; at the end an empty last one.
fn brotli(plain: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    let mut is_first = true;
    for block in plain.chunks(1 << 16) {
        let length = block.len() as u32 - 1;
        // From the lowest bit: [window 0], last 0, nibbles 00, length, stored 1, and zeros up to the byte.
        let bits = length << 3 | 1 << 19;
        let bits = if is_first { bits << 1 } else { bits };
        is_first = false;
        coded.extend_from_slice(&bits.to_le_bytes()[..3]);
        coded.extend_from_slice(block);
    }
    // Last, and empty.
    coded.push(if is_first { 0b110 } else { 0b11 });
    coded
}
