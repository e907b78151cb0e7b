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
    copy(text, out, |c, out| match c {
        '\0'..='\x7f' => {
            let (escape, len) = &JSON[c as usize];
            push_run(escape, *len, out);
        }
        c if is_control(c) => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.extend_from_slice(b"\\u");
                out.extend_from_slice(&hex(*unit));
            }
        }
        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    });
}

/// The escapes of ASCII and their lengths. The short forms \n, \r, \t would decode to the same: one
/// form for all is the contract. A table, since headers and JSON have one every ten bytes.
static JSON: [([u8; 16], usize); 128] = {
    let mut table = [([0; 16], 0); 128];
    let mut code = 0;
    while code < 128 {
        let (escape, len) = &mut table[code];
        escape[0] = b'\\';
        if code < 0x20 || code == 0x7f {
            let [a, b, c, d] = hex(code as u16);
            [escape[1], escape[2], escape[3], escape[4], escape[5]] = [b'u', a, b, c, d];
            *len = 6;
        } else {
            escape[1] = code as u8;
            *len = 2;
        }
        code += 1;
    }
    table
};

/// Appends `text` for people: `\n`, `\x1b`, `\u{202e}` in place of controls.
///
/// A `\` of the text itself stays single: payloads are full of them, and who needs to tell the two
/// apart reads the JSON.
pub fn visible(text: &str, out: &mut Vec<u8>) {
    copy(text, out, |c, out| match c {
        '\t' => out.extend_from_slice(b"\\t"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        c if c.is_ascii() && is_control(c) => byte(c as u8, out),
        c if is_control(c) => {
            // Five digits reach all of them; U+E0020 is the last range.
            let code = u32::from(c);
            out.extend_from_slice(b"\\u{");
            let digits = [hex((code >> 16) as u16), hex(code as u16)].concat();
            let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
            out.extend_from_slice(&digits[zeros..]);
            out.push(b'}');
        }
        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    });
}

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

/// Copies `text`, handing every character that may need an escape to `escape`. Of ASCII, these are
/// controls, `"` and `\`, and no others.
///
/// The pipeline's hot loop for text. Suspects are found 64 bytes at a time as bits of a mask, without
/// a branch per byte, and what lies between them is copied as a run.
fn copy(text: &str, out: &mut Vec<u8>, escape: impl Fn(char, &mut Vec<u8>)) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (number, block) in bytes.chunks(64).enumerate() {
        let mut suspects = match block.first_chunk() {
            Some(block) => suspects(block),
            None => {
                let mut padded = [b' '; 64];
                padded[..block.len()].copy_from_slice(block);
                suspects(&padded)
            }
        };
        while suspects != 0 {
            let at = number * 64 + suspects.trailing_zeros() as usize;
            suspects &= suspects - 1;
            push_run(&bytes[copied..], at - copied, out);
            copied = match bytes[at] {
                ascii @ ..0x80 => {
                    escape(ascii.into(), out);
                    at + 1
                }
                _ => {
                    let c = text[at..].chars().next().unwrap_or_default();
                    escape(c, out);
                    at + c.len_utf8()
                }
            };
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

/// Bit i is set if a character that may need an escape begins at byte i of valid UTF-8.
fn suspects(block: &[u8; 64]) -> u64 {
    // 0 or 1 a byte, in a loop of its own: the compiler makes vector compares of it.
    let mut flags = [0; 64];
    for (flag, byte) in flags.iter_mut().zip(block) {
        *flag = u8::from(is_suspect(*byte));
    }
    // Then eight flags to eight bits by one multiplication, which moves bit 8i to bit 56 + i.
    let mut mask = 0;
    for (i, eight) in flags.as_chunks::<8>().0.iter().enumerate() {
        let bits = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        mask |= bits << (8 * i);
    }
    mask
}

/// Controls and what JSON escapes in ASCII; above it the lead bytes under which a control exists.
/// Latin, Cyrillic, Greek, CJK and Hangul have none of these. Never true for a continuation byte.
const fn is_suspect(byte: u8) -> bool {
    byte < 0x20
        || byte == b'"'
        || byte == b'\\'
        || byte == 0x7f
        || byte == 0xc2
        || byte.wrapping_sub(0xd8) < 5
        || byte.wrapping_sub(0xe0) < 3
        || byte >= 0xef
}

/// Appends the first `len` bytes of `bytes`. Most runs are short, and sixteen bytes by one move, cut
/// afterwards, are faster than a call that moves nine.
fn push_run(bytes: &[u8], len: usize, out: &mut Vec<u8>) {
    match bytes.first_chunk::<16>() {
        Some(sixteen) if len <= 16 => {
            out.extend_from_slice(sixteen);
            out.truncate(out.len() - 16 + len);
        }
        _ => out.extend_from_slice(&bytes[..len]),
    }
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

    #[test]
    fn runs_of_every_length_are_copied_whole() {
        for before in 0..200 {
            for after in [0, 1, 15, 16, 17, 63, 64, 65] {
                let text = format!("{}\"{}", "x".repeat(before), "é".repeat(after));
                let expected = format!("{}\\\"{}", "x".repeat(before), "é".repeat(after));
                assert_eq!(written(json, &text), expected);
            }
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
