//! Strings of others on their way to a terminal or a file.
//!
//! Payloads, names and paths are written by whoever is traced. A control character in them can move
//! the cursor, retitle the window or turn the line around (bidi), so none leaves as it is: [`json`]
//! writes `\uXXXX`, which decodes to the same character, [`visible`] something that people see.

/// True for what Unicode calls a control (Cc) or a format character (Cf, the bidi controls and the
/// tags included), and for the two separators that end a line.
pub const fn is_control(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}'
        | '\u{7f}'..='\u{9f}'
        | '\u{ad}'
        | '\u{600}'..='\u{605}'
        | '\u{61c}'
        | '\u{6dd}'
        | '\u{70f}'
        | '\u{890}'..='\u{891}'
        | '\u{8e2}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        // U+2065 is not assigned; it is in because renderers ignore it like the others.
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{110bd}'
        | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}'
        | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0001}'
        | '\u{e0020}'..='\u{e007f}')
}

/// Appends `text` as the inside of a JSON string: controls, `"` and `\` escaped.
pub fn json(text: &str, out: &mut Vec<u8>) {
    copy(text, out, &JSON, |c, out| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.extend_from_slice(b"\\u");
            out.extend_from_slice(&hex(*unit));
        }
    });
}

/// The short forms \n, \r, \t would decode to the same: one form for all is the contract.
static JSON: [Escape; 128] = {
    let mut table = [Escape::of(b" "); 128];
    let mut code = 0;
    while code < 128 {
        let [_, _, high, low] = hex(code);
        table[code as usize] = match code as u8 {
            byte @ (b'"' | b'\\') => Escape::of(&[b'\\', byte]),
            ..0x20 | 0x7f => Escape::of(&[b'\\', b'u', b'0', b'0', high, low]),
            byte => Escape::of(&[byte]),
        };
        code += 1;
    }
    table
};

/// Appends `text` for people: `\n`, `\x1b`, `\u{202e}` in place of controls.
///
/// A `\` of the text itself stays single: payloads are full of them, and who needs to tell the two
/// apart reads the JSON.
pub fn visible(text: &str, out: &mut Vec<u8>) {
    copy(text, out, &VISIBLE, |c, out| {
        // Five digits reach all of them; U+E0020 is the last range.
        let code = u32::from(c);
        out.extend_from_slice(b"\\u{");
        let digits = [hex((code >> 16) as u16), hex(code as u16)].concat();
        let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
        out.extend_from_slice(&digits[zeros..]);
        out.push(b'}');
    });
}

static VISIBLE: [Escape; 128] = {
    let mut table = [Escape::of(b" "); 128];
    let mut code = 0;
    while code < 128 {
        let [_, _, high, low] = hex(code);
        table[code as usize] = match code as u8 {
            b'\t' => Escape::of(b"\\t"),
            b'\n' => Escape::of(b"\\n"),
            b'\r' => Escape::of(b"\\r"),
            ..0x20 | 0x7f => Escape::of(&[b'\\', b'x', high, low]),
            byte => Escape::of(&[byte]),
        };
        code += 1;
    }
    table
};

/// Appends one byte for people, as `\x1b`.
pub fn byte(byte: u8, out: &mut Vec<u8>) {
    let [_, _, high, low] = hex(byte.into());
    out.extend_from_slice(&[b'\\', b'x', high, low]);
}

const fn hex(unit: u16) -> [u8; 4] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [
        DIGITS[(unit >> 12) as usize],
        DIGITS[(unit >> 8 & 15) as usize],
        DIGITS[(unit >> 4 & 15) as usize],
        DIGITS[(unit & 15) as usize],
    ]
}

/// What a byte of ASCII becomes.
#[derive(Clone, Copy)]
struct Escape {
    /// Written whole, by one move; what comes next is written over the excess.
    bytes: [u8; 8],
    /// From 1 to [`LONGEST`].
    length: u8,
}

const LONGEST: usize = 6;

impl Escape {
    const fn of(text: &[u8]) -> Self {
        assert!(!text.is_empty() && text.len() <= LONGEST);
        let mut bytes = [0; 8];
        bytes.split_at_mut(text.len()).0.copy_from_slice(text);
        Escape {
            bytes,
            length: text.len() as u8,
        }
    }
}

/// Bytes that are looked at together.
const BLOCK: usize = 32;
/// A block of nothing but the longest escapes, and the copy behind the last one.
const ROOM: usize = BLOCK * LONGEST + BLOCK;

/// Copies `text`. What its ASCII becomes is in `ascii`; controls above that go to `above`.
fn copy(text: &str, out: &mut Vec<u8>, ascii: &[Escape; 128], above: impl Fn(char, &mut Vec<u8>)) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let left = &bytes[at..];
        let padded;
        let window = match left.first_chunk() {
            Some(window) => window,
            None => {
                padded = pad(left);
                &padded
            }
        };
        let leads = match window[..BLOCK].is_ascii() {
            true => 0,
            false => mask(window, may_lead_control),
        };
        let control = ones(leads).find_map(|i| {
            let c = text[at + i..].chars().next().filter(|c| is_control(*c));
            Some((i, c?))
        });
        let end = control.map_or(left.len().min(BLOCK), |(i, _)| i);
        push_block(window, end, ascii, out);
        at += end;
        if let Some((_, c)) = control {
            above(c, out);
            at += c.len_utf8();
        }
    }
}

fn pad(short: &[u8]) -> [u8; 2 * BLOCK] {
    let mut padded = [b' '; 2 * BLOCK];
    padded[..short.len()].copy_from_slice(short);
    padded
}

/// Appends the first `end` bytes of a block; the window's other half is only there to be read.
///
/// The hot loop for text, which has something to escape every ten bytes. A branch on how far it is to
/// the next one would be mispredicted each time, so there is none: behind each escape as much as a
/// whole block is copied, and the next escape is written over what of it was too much.
#[inline]
fn push_block(window: &[u8; 2 * BLOCK], end: usize, ascii: &[Escape; 128], out: &mut Vec<u8>) {
    assert!(end <= BLOCK);
    out.reserve(ROOM);
    let room = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
    // SAFETY: a window is longer than a block, and so is the room.
    unsafe { window.as_ptr().copy_to_nonoverlapping(room, BLOCK) };
    let before_end = ((1u64 << end) - 1) as u32;
    // By how much the output is ahead.
    let mut grown = 0;
    for i in ones(mask(window, is_escaped) & before_end) {
        let Escape { bytes, length } = ascii[usize::from(window[i]) % 128];
        let length = usize::from(length);
        let rest = &window[i + 1..][..BLOCK];
        debug_assert!(i + grown + length + BLOCK <= ROOM);
        // SAFETY: i bytes became i + grown <= LONGEST * i, and i < BLOCK. So at least LONGEST + BLOCK
        // of the room are behind `place`; 8 is less, and length <= LONGEST.
        unsafe {
            let place = room.add(i + grown);
            place.cast::<[u8; 8]>().write(bytes);
            rest.as_ptr()
                .copy_to_nonoverlapping(place.add(length), BLOCK);
        }
        grown += length - 1;
    }
    // SAFETY: written without a hole: each copy reaches a block further than where it began.
    unsafe { out.set_len(out.len() + end + grown) };
}

/// Where the ones of a mask are, from the lowest.
fn ones(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lowest = mask.trailing_zeros();
            mask &= mask - 1;
            lowest as usize % BLOCK
        })
    })
}

/// Bit i is set if byte i of the block is wanted.
#[inline]
fn mask(window: &[u8; 2 * BLOCK], is_wanted: impl Fn(u8) -> bool) -> u32 {
    // In a loop of its own: the compiler makes vector compares of it.
    let mut flags = [0; BLOCK];
    for (flag, byte) in flags.iter_mut().zip(window) {
        *flag = if is_wanted(*byte) { 0xff } else { 0 };
    }
    let (halves, _) = flags.as_chunks();
    top_bits(halves[1]) << 16 | top_bits(halves[0])
}

/// The top bit of each byte.
#[cfg(target_arch = "x86_64")]
fn top_bits(bytes: [u8; 16]) -> u32 {
    use std::arch::x86_64::{__m128i, _mm_movemask_epi8};
    // SAFETY: any sixteen bytes are a vector, and every x86-64 has SSE2.
    unsafe { _mm_movemask_epi8(std::mem::transmute::<[u8; 16], __m128i>(bytes)) as u32 }
}

#[cfg(not(target_arch = "x86_64"))]
fn top_bits(bytes: [u8; 16]) -> u32 {
    (0..)
        .zip(bytes)
        .map(|(i, byte)| u32::from(byte >> 7) << i)
        .sum()
}

/// Of ASCII, what JSON escapes. No `||`, here and below: a branch can't become part of a vector.
const fn is_escaped(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte == 0x7f)
}

/// The lead bytes under which a control exists. Latin, Cyrillic, Greek, CJK and Hangul have none of
/// these. Never true for a continuation byte.
const fn may_lead_control(byte: u8) -> bool {
    (byte == 0xc2) | (byte.wrapping_sub(0xd8) < 5) | (byte.wrapping_sub(0xe0) < 3) | (byte >= 0xef)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(escape: fn(&str, &mut Vec<u8>), text: &str) -> String {
        let mut out = Vec::new();
        escape(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_escapes_every_control_and_decodes_to_the_same() {
        for c in ('\0'..=char::MAX).filter(|c| is_control(*c)) {
            let text = format!("a{c}b");
            let inside = written(json, &text);
            let units: String = c
                .encode_utf16(&mut [0; 2])
                .iter()
                .map(|unit| format!("\\u{unit:04x}"))
                .collect();
            assert_eq!(inside, format!("a{units}b"));
            assert_eq!(
                serde_json::from_str::<String>(&format!("\"{inside}\"")).unwrap(),
                text
            );
        }
    }

    #[test]
    fn every_character_decodes_to_itself_at_every_place_of_a_block() {
        // 67 is coprime to the block of 64, so every class of characters meets every position.
        let all: Vec<char> = ('\0'..=char::MAX).collect();
        for chunk in all.chunks(67) {
            let text: String = chunk.iter().collect();
            let inside = written(json, &text);
            assert!(!inside.chars().any(is_control));
            assert_eq!(
                serde_json::from_str::<String>(&format!("\"{inside}\"")).unwrap(),
                text
            );
        }
    }

    /// Both escapers the plain way, a character at a time.
    fn plainly(text: &str) -> [String; 2] {
        let [mut json, mut visible] = [String::new(), String::new()];
        for c in text.chars() {
            match c {
                '"' | '\\' => json.extend(['\\', c]),
                c if is_control(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        json += &format!("\\u{unit:04x}");
                    }
                }
                c => json.push(c),
            }
            match c {
                '\t' | '\n' | '\r' => visible.extend(c.escape_default()),
                c if c.is_ascii_control() => visible += &format!("\\x{:02x}", u32::from(c)),
                c if is_control(c) => visible += &format!("\\u{{{:x}}}", u32::from(c)),
                c => visible.push(c),
            }
        }
        [json, visible]
    }

    fn check(text: &str) {
        assert_eq!(
            [written(json, text), written(visible, text)],
            plainly(text),
            "{text:?}"
        );
    }

    /// Characters of every length, plain and escaped, and plain ones that share an escaped one's lead.
    const PIECES: [&str; 22] = [
        "\"",
        "\\",
        "\0",
        "\n",
        "\t",
        "\x1f",
        " ",
        "~",
        "\x7f",
        "\u{80}",
        "\u{ad}",
        "°",
        "é",
        "\u{61c}",
        "ก",
        "\u{200b}",
        "—",
        "漢",
        "\u{feff}",
        "𝄞",
        "\u{1d173}",
        "\u{e0041}",
    ];

    #[test]
    fn everything_is_escaped_as_the_plain_way_does_it() {
        check(&('\0'..=char::MAX).collect::<String>());
        check("");
    }

    #[test]
    fn every_kind_of_character_at_every_place_of_a_block() {
        for piece in PIECES {
            for filling in ["x", "\"", "\n", "é"] {
                for before in 0..=2 * BLOCK {
                    for after in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK] {
                        let (before, after) = (filling.repeat(before), filling.repeat(after));
                        check(&format!("{before}{piece}{after}"));
                        check(&format!("{before}{piece}{piece}{after}"));
                    }
                }
            }
        }
    }

    #[test]
    fn random_text_at_every_cut() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        };
        for round in 0..200 {
            // From nothing but pieces to long plain runs.
            let run = 1 + round % 50;
            let mut text = String::new();
            for _ in 0..20 {
                text += &"x".repeat(random(run));
                text += PIECES[random(PIECES.len())];
            }
            for cut in (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                check(&text[..cut]);
                check(&text[cut..]);
            }
        }
    }

    #[test]
    fn what_is_there_stays() {
        for length in 0..100 {
            let mut out = vec![b'-'; length];
            out.shrink_to_fit();
            json("\"\n", &mut out);
            json(&"x".repeat(length), &mut out);
            let (dashes, text) = ("-".repeat(length), "x".repeat(length));
            assert_eq!(out, format!("{dashes}\\\"\\u000a{text}").into_bytes());
        }
    }

    #[test]
    fn visible_leaves_no_control_and_keeps_the_rest() {
        for c in '\0'..=char::MAX {
            let shown = written(visible, &c.to_string());
            assert!(!shown.chars().any(is_control), "{c:?}");
            assert_eq!(shown == c.to_string(), !is_control(c), "{c:?}");
        }
        assert_eq!(
            written(visible, "a\x1b[31m\u{9b}\u{202e}\u{e0041}\r\n\t\\\"é"),
            r#"a\x1b[31m\u{9b}\u{202e}\u{e0041}\r\n\t\"é"#
        );
    }

    #[test]
    fn controls_are_those_of_unicode() {
        // Number and sum from UnicodeData.txt, version 16: 65 Cc, 170 Cf, two separators, U+2065.
        let controls = || ('\0'..=char::MAX).filter(|c| is_control(*c));
        assert_eq!(controls().count(), 65 + 170 + 2 + 1);
        assert_eq!(controls().map(u32::from).sum::<u32>(), 92_342_036);
    }
}
