//! gRPC's framing inside of bodies (gRPC over HTTP/2, "Length-Prefixed-Message"; grpc-web, which has its
//! trailers in a last message): how many messages there were, and how large.

use crate::planted::Mistake;

/// Sizes that are kept of one body.
const SIZES_MAX: usize = 64;
/// Longest trailers of grpc-web.
const TRAILERS_MAX: usize = 8 << 10;

/// The messages of one body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    pub count: u64,
    /// Of the first ones, as they were sent.
    pub sizes: Vec<u32>,
    /// How many there were before the last bytes that were fed, and the sizes of the first ones that these began.
    pub before: u64,
    pub begun: Vec<u32>,
    /// Trailers that are sent as a message, with grpc-web.
    trailers: Vec<u8>,
    prefix: Vec<u8>,
    left: u64,
    in_trailers: bool,
    /// Behind a hole that may hide a prefix, nobody knows where a message begins.
    pub is_lost: bool,
}

/// The flag of trailers in a prefix.
const TRAILERS: u8 = 0x80;

impl Messages {
    /// More of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.before = self.count;
        self.begun.clear();
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_lost {
            if self.left > 0 {
                let used = self.left.min(rest.len() as u64) as usize;
                if self.in_trailers {
                    let room = TRAILERS_MAX - self.trailers.len();
                    self.trailers.extend_from_slice(&rest[..used.min(room)]);
                }
                self.left -= used as u64;
                rest = &rest[used..];
                continue;
            }
            self.prefix.push(rest[0]);
            rest = &rest[1..];
            if let [flags, a, b, c, d] = self.prefix[..] {
                self.prefix.clear();
                let size = u32::from_be_bytes([a, b, c, d]);
                self.left = size.into();
                self.in_trailers = flags & TRAILERS != 0;
                if !self.in_trailers {
                    self.count += 1;
                    if self.begun.len() < SIZES_MAX {
                        self.begun.push(size);
                    }
                    if self.sizes.len() < SIZES_MAX {
                        self.sizes.push(size);
                    }
                }
            }
        }
    }

    /// A part of the body is missing.
    pub fn hole(&mut self, length: u64) {
        match self.left.checked_sub(length) {
            Some(left) if length > 0 && self.prefix.is_empty() && !self.in_trailers => {
                self.left = if Mistake::Grpc.is_planted() {
                    self.left
                } else {
                    left
                };
            }
            _ => self.is_lost = true,
        }
    }

    /// A field of the trailers that were sent as a message.
    pub fn trailer(&self, name: &str) -> Option<&[u8]> {
        let lines = self.trailers.split(|byte| *byte == b'\n');
        lines
            .filter_map(|line| {
                let colon = memchr::memchr(b':', line)?;
                Some((line[..colon].trim_ascii(), line[colon + 1..].trim_ascii()))
            })
            .find(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_however_they_are_cut() {
        let body = b"\0\0\0\0\x03abc\x01\0\0\0\0\0\0\0\0\x01d\x80\0\0\0\x1egrpc-status: 5\r\ngrpc-message:x";
        for cut in 0..=body.len() {
            let mut messages = Messages::default();
            messages.feed(&body[..cut]);
            messages.feed(&body[cut..]);
            assert_eq!(
                (messages.count, &messages.sizes[..]),
                (3, &[3, 0, 1][..]),
                "{cut}"
            );
            assert_eq!(messages.trailer("Grpc-Status"), Some(&b"5"[..]));
            assert_eq!(messages.trailer("grpc-message"), Some(&b"x"[..]));
            assert_eq!(messages.trailer("other"), None);
        }
    }

    #[test]
    fn what_a_call_began_is_told_and_bounded() {
        let mut messages = Messages::default();
        messages.feed(b"\0\0\0\0\x01x\0\0\0");
        assert_eq!((messages.before, &messages.begun[..]), (0, &[1][..]));
        messages.feed(b"\0\x02yz");
        assert_eq!((messages.before, &messages.begun[..]), (1, &[2][..]));
        messages.feed(&[0; 5 * 1000]);
        assert_eq!((messages.before, messages.count), (2, 1002));
        assert_eq!(messages.begun, [0; SIZES_MAX]);
    }

    #[test]
    fn a_hole_in_a_message_costs_nothing_more() {
        let mut messages = Messages::default();
        messages.feed(b"\0\0\0\0\x09abc");
        messages.hole(4);
        messages.feed(b"hi\0\0\0\0\x01x");
        assert_eq!((messages.count, messages.is_lost), (2, false));
        messages.hole(1);
        messages.feed(b"\0\0\0\0\x01x");
        assert_eq!((messages.count, messages.is_lost), (2, true));
    }
}
