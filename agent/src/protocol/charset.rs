//! Text of bodies that is not in UTF-8, as heads declare it or by its byte order mark (Encoding Standard).
//!
//! What is plain text in UTF-8 already stays as it is, whatever its head says: many heads are wrong, and text that
//! was read by a wrong table would pass redaction.

use encoding_rs::{DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::head::{media_name, parameter};
use crate::planted::Mistake;

/// The text, and in what it was written. `None`: it is UTF-8, or no text that can be read. `is_cut`: a character may
/// be, too.
pub fn text_of(media: &[u8], bytes: &[u8], is_cut: bool) -> Option<(String, &'static str)> {
    if is_plain(bytes, is_cut) {
        return None;
    }
    let declared = parameter(media, "charset");
    let (encoding, mark) = match Encoding::for_bom(bytes) {
        Some(marked) if declared.is_some() || is_text(media) => marked,
        _ => (Encoding::for_label_no_replacement(declared?)?, 0),
    };
    let is_wide = encoding == UTF_16LE || encoding == UTF_16BE;
    // Text has spaces and line ends; without any it is hardly what its head says.
    if encoding == UTF_8 || is_wide && mark == 0 && memchr::memchr(0, bytes).is_none() {
        return None;
    }
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let length = decoder.max_utf8_buffer_length_without_replacement(bytes.len())?;
    let mut text = String::with_capacity(length);
    let is_last = !is_cut || Mistake::Charset.is_planted();
    let (done, _) =
        decoder.decode_to_string_without_replacement(&bytes[mark..], &mut text, is_last);
    (done == DecoderResult::InputEmpty).then(|| (text, encoding.name()))
}

/// Does each byte stand for a character, so that one that is missing harms no other?
pub fn is_single_byte(media: &[u8]) -> bool {
    parameter(media, "charset")
        .and_then(Encoding::for_label_no_replacement)
        .is_some_and(Encoding::is_single_byte)
}

/// NUL and escape are no text, but parts of UTF-16 and of ISO-2022.
fn is_plain(bytes: &[u8], is_cut: bool) -> bool {
    let is_utf8 = match simdutf8::compat::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => is_cut && error.error_len().is_none(),
    };
    is_utf8 && memchr::memchr2(0, 0x1b, bytes).is_none()
}

/// Media whose bodies are text, though no charset is named.
fn is_text(media: &[u8]) -> bool {
    let name = media_name(media);
    name.starts_with(b"text/")
        || [&b"json"[..], b"xml", b"javascript"]
            .iter()
            .any(|kind| name.ends_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain; declared as; the bytes; which encoding that is.
    const TEXTS: [(&str, &str, &[u8], &str); 8] = [
        (
            "caf\u{e9}",
            "text/html; charset=ISO-8859-1",
            b"caf\xe9",
            "windows-1252",
        ),
        (
            "\u{20ac}1",
            "text/plain;Charset=\"windows-1252\"",
            b"\x801",
            "windows-1252",
        ),
        (
            "\u{65e5}\u{672c}!",
            "text/html; x=1; charset=Shift_JIS",
            b"\x93\xfa\x96\x7b!",
            "Shift_JIS",
        ),
        (
            "\u{65e5}\u{672c}",
            "text/plain; charset=EUC-JP",
            b"\xc6\xfc\xcb\xdc",
            "EUC-JP",
        ),
        (
            "\u{65e5}!",
            "text/plain; charset=iso-2022-jp",
            b"\x1b$BF|\x1b(B!",
            "ISO-2022-JP",
        ),
        (
            "\u{4e2d}a",
            "application/json; charset=gb18030",
            b"\xd6\xd0a",
            "gb18030",
        ),
        (
            "a\u{e9}",
            "text/plain; charset=utf-16le",
            b"a\0\xe9\0",
            "UTF-16LE",
        ),
        (
            "a\u{4e2d}",
            "application/problem+json",
            b"\xfe\xff\0a\x4e\x2d",
            "UTF-16BE",
        ),
    ];

    #[test]
    fn text_in_other_encodings() {
        for (text, media, bytes, name) in TEXTS {
            let read = text_of(media.as_bytes(), bytes, false);
            assert_eq!(read, Some((text.to_owned(), name)), "{media}");
        }
    }

    /// What is left of a body is read up to its last whole character.
    #[test]
    fn text_that_is_cut_anywhere() {
        for (text, media, bytes, _) in TEXTS {
            let mut longest = 0;
            for cut in 0..bytes.len() {
                let Some((read, _)) = text_of(media.as_bytes(), &bytes[..cut], true) else {
                    continue;
                };
                assert!(text.starts_with(&read), "{media} {cut}: {read}");
                assert!(read.len() >= longest, "{media} {cut}: {read}");
                longest = read.len();
            }
        }
    }

    #[test]
    fn what_is_left_as_it_is() {
        let media: [(&str, &[u8]); 10] = [
            // Whatever the head says: read as UTF-16 a secret would pass.
            ("text/plain; charset=utf-16le", b"password=hunter2!"),
            ("text/plain; charset=utf-16le", b"password=hunter\xe9"),
            ("text/plain; charset=iso-8859-1", "caf\u{e9}".as_bytes()),
            ("text/plain; charset=utf-8", b"caf\xe9"),
            ("text/plain", b"caf\xe9"),
            ("text/plain; charset=nonsense", b"caf\xe9"),
            // Encodings that the standard forbids to read.
            ("text/plain; charset=iso-2022-kr", b"\x1b$)C"),
            // It is not what the head says.
            ("text/plain; charset=shift_jis", b"\x93\xfa\xff"),
            ("text/plain; charset=utf-16le", b"a\0b"),
            // No text, and what looks like a mark is none.
            ("audio/mpeg", b"\xff\xfe\x90\x64"),
        ];
        for (media, bytes) in media {
            assert_eq!(text_of(media.as_bytes(), bytes, false), None, "{media}");
        }
        assert_eq!(
            text_of(b"text/plain; charset=utf-16", "caf\u{e9}".as_bytes(), true),
            None
        );
    }

    #[test]
    fn single_bytes() {
        assert!(is_single_byte(b"text/html; charset=latin1"));
        assert!(!is_single_byte(b"text/html; charset=shift_jis"));
        assert!(!is_single_byte(b"text/html"));
    }
}
