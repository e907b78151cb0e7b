//! Text that is not in UTF-8: any bytes that are said to be in anything, and text that is known.
//!
//! An input is one byte that says what the rest is, and that: a media type, a NUL and bytes; or choices that make
//! them. What is known is written by the rules of the encodings here, not by tables.
#![no_main]

use libfuzzer_sys::fuzz_target;
use play::Choices;
use vortex_agent::protocol::charset::{is_single_byte, text_of};

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    match choices.byte() {
        0 | 1 => anything(choices.0),
        _ => known(&mut choices),
    }
});

fn anything(input: &[u8]) {
    let at = input.iter().position(|byte| *byte == 0);
    let (media, bytes) = input.split_at(at.unwrap_or(0));
    let bytes = bytes.strip_prefix(b"\0").unwrap_or(bytes);
    let whole = text_of(media, bytes, false);
    if let Some((text, _)) = &whole {
        assert!(!is_plain(bytes), "{text:?} was plain text");
        assert!(text.len() <= 3 * bytes.len());
        if is_single_byte(media) && !is_marked(bytes) {
            assert_eq!(text.chars().count(), bytes.len());
        }
    }
    // Of a mark that is cut nobody knows what it marks.
    for cut in 3..bytes.len() {
        let part = text_of(media, &bytes[..cut], true);
        let (Some((whole, name)), Some((part, part_name))) = (&whole, part) else {
            continue;
        };
        assert_eq!(*name, part_name);
        assert!(whole.starts_with(&part), "{part:?} of {whole:?}");
    }
}

/// What marks text in UTF-8 or UTF-16, whatever is declared.
fn is_marked(bytes: &[u8]) -> bool {
    [&b"\xef\xbb\xbf"[..], b"\xfe\xff", b"\xff\xfe"]
        .iter()
        .any(|mark| bytes.starts_with(mark))
}

/// Text in UTF-8 to its end. NUL and escape are parts of others.
fn is_plain(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok() && !bytes.iter().any(|byte| matches!(byte, 0 | 0x1b))
}

/// A label, the name that the standard has for it, and how a character is written, if it has that.
struct Encoding {
    label: &'static str,
    name: &'static str,
    write: fn(char) -> Option<Vec<u8>>,
    /// Characters besides ASCII that it has.
    first: char,
    count: u32,
}

const ENCODINGS: [Encoding; 10] = [
    Encoding {
        label: "latin1",
        name: "windows-1252",
        write: |c| Some(vec![u8::try_from(u32::from(c)).ok()?]),
        first: '\u{a0}',
        count: 96,
    },
    Encoding {
        label: "windows-1251",
        name: "windows-1251",
        write: |c| Some(vec![(u32::from(c) - 0x410 + 0xc0) as u8]),
        first: '\u{410}',
        count: 64,
    },
    Encoding {
        label: "iso-8859-5",
        name: "ISO-8859-5",
        write: |c| Some(vec![(u32::from(c) - 0x410 + 0xb0) as u8]),
        first: '\u{410}',
        count: 64,
    },
    Encoding {
        label: "tis-620",
        name: "windows-874",
        write: |c| Some(vec![(u32::from(c) - 0xe01 + 0xa1) as u8]),
        first: '\u{e01}',
        count: 58,
    },
    // Half-width katakana, one byte each; hiragana, two.
    Encoding {
        label: "shift_jis",
        name: "Shift_JIS",
        write: |c| Some(vec![(u32::from(c) - 0xff61 + 0xa1) as u8]),
        first: '\u{ff61}',
        count: 63,
    },
    Encoding {
        label: "euc-jp",
        name: "EUC-JP",
        write: |c| Some(vec![0xa4, (u32::from(c) - 0x3041 + 0xa1) as u8]),
        first: '\u{3041}',
        count: 83,
    },
    Encoding {
        label: "iso-2022-jp",
        name: "ISO-2022-JP",
        write: |c| {
            let low = (u32::from(c) - 0x3041 + 0x21) as u8;
            Some([b"\x1b$B\x24", &[low][..], b"\x1b(B"].concat())
        },
        first: '\u{3041}',
        count: 83,
    },
    // What is beyond the first plane is counted through.
    Encoding {
        label: "gb18030",
        name: "gb18030",
        write: |c| {
            let at = u32::from(c) - 0x10000 + 189_000;
            let digits = [
                at / 12600 + 0x81,
                at / 1260 % 10 + 0x30,
                at / 10 % 126 + 0x81,
                at % 10 + 0x30,
            ];
            Some(digits.map(|digit| digit as u8).to_vec())
        },
        first: '\u{1f300}',
        count: 1000,
    },
    Encoding {
        label: "utf-16le",
        name: "UTF-16LE",
        write: |c| Some(units(c).flat_map(u16::to_le_bytes).collect()),
        first: '\u{ff00}',
        count: 0x200,
    },
    Encoding {
        label: "utf-16be",
        name: "UTF-16BE",
        write: |c| Some(units(c).flat_map(u16::to_be_bytes).collect()),
        first: '\u{ff00}',
        count: 0x200,
    },
];

fn units(c: char) -> impl Iterator<Item = u16> {
    let mut units = [0; 2];
    let count = c.encode_utf16(&mut units).len();
    units.into_iter().take(count)
}

fn known(choices: &mut Choices<'_>) {
    let at = choices.below(ENCODINGS.len());
    let encoding = &ENCODINGS[at];
    let is_wide = encoding.name.starts_with("UTF-16");
    let has_mark = is_wide && choices.chance();
    let is_declared = !has_mark || choices.chance();
    // With a mark it does not matter what is declared.
    let label = match has_mark {
        true => choices.of(&["utf-8", "latin1", encoding.label]),
        false => encoding.label,
    };
    let media = match is_declared {
        true => format!("text/plain; charset={label}"),
        false => "application/json".to_owned(),
    };
    let (mut text, mut bytes) = (String::new(), Vec::new());
    if has_mark {
        bytes.extend((encoding.write)('\u{feff}').unwrap_or_default());
    }
    let mark = bytes.len();
    // Where each character ends, in the text and in the bytes.
    let mut ends = vec![(0, mark)];
    for at in 0..1 + choices.below(40) {
        // Without a NUL it is hardly UTF-16.
        let c = match at == 0 || choices.chance() {
            true => char::from(b'a' + choices.byte() % 26),
            false => char::from_u32(
                u32::from(encoding.first) + choices.below(encoding.count as usize) as u32,
            )
            .filter(|c| !is_wide || *c != '\u{fffe}')
            .unwrap_or('\u{1f600}'),
        };
        let written = match c.is_ascii() && !is_wide {
            true => Some(vec![c as u8]),
            false => (encoding.write)(c),
        };
        let written = written.expect("it has this character");
        // It is there before it is switched back.
        let switch = if written.ends_with(b"\x1b(B") { 3 } else { 0 };
        bytes.extend(written);
        text.push(c);
        ends.push((text.len(), bytes.len() - switch));
        if switch > 0 {
            // It may not be switched twice for nothing.
            bytes.push(b'x');
            text.push('x');
            ends.push((text.len(), bytes.len()));
        }
    }
    let told = (!is_plain(&bytes)).then(|| (text.clone(), encoding.name));
    assert_eq!(text_of(media.as_bytes(), &bytes, false), told, "{media}");

    // Cut anywhere: up to the last character that is whole.
    for cut in mark + 2..bytes.len() {
        let part = &bytes[..cut];
        let is_begun = str::from_utf8(part).is_err_and(|error| error.error_len().is_none());
        let has_rest = part.iter().any(|byte| matches!(byte, 0 | 0x1b));
        let (end, _) = ends[ends.partition_point(|(_, end)| *end <= cut) - 1];
        let read = text_of(media.as_bytes(), part, true);
        match is_plain(part) || is_begun && !has_rest {
            true => assert_eq!(read, None),
            false => assert_eq!(
                read,
                Some((text[..end].to_owned(), encoding.name)),
                "{media} {cut}"
            ),
        }
    }

    // Where each byte is a character, a hole costs no other.
    if is_declared && is_single_byte(media.as_bytes()) && bytes.len() == text.chars().count() {
        let hole = choices.range(bytes.len());
        let left = [&bytes[..hole.start], &bytes[hole.end..]].concat();
        let read: String = text
            .chars()
            .take(hole.start)
            .chain(text.chars().skip(hole.end))
            .collect();
        if is_marked(&left) {
            return;
        }
        let told = (!is_plain(&left)).then_some((read, encoding.name));
        assert_eq!(text_of(media.as_bytes(), &left, false), told);
    }
}
