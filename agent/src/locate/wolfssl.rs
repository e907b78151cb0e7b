//! wolfSSL, found by its symbols and proved by its call graph.
//!
//! `wolfSSL_read` and `wolfSSL_peek` lead into one inner function, which is told by an argument whether the bytes
//! come again: what is probed is the read, never what is below. `wolfSSL_recv`, `wolfSSL_send` and
//! `wolfSSL_writev` call the plain ones. The functions with OpenSSL's names are macros of its headers.

use agent_ebpf::{Direction, Shape};

use super::{
    Found, Refusal,
    carrier::{Carrier, entries, independent, names, others, points, share_a_function},
    elf::Elf,
    means,
};

#[rustfmt::skip]
const EXPORTS: [Carrier; 6] = [
    ("wolfSSL_read",     Direction::Received, Shape::Returned),
    ("wolfSSL_read_ex",  Direction::Received, Shape::OutFourth),
    ("wolfSSL_recv",     Direction::Received, Shape::Returned),
    ("wolfSSL_write",    Direction::Sent,     Shape::Returned),
    ("wolfSSL_write_ex", Direction::Sent,     Shape::OutFourth),
    ("wolfSSL_send",     Direction::Sent,     Shape::Returned),
];
const PEEK: Carrier = ("wolfSSL_peek", Direction::Received, Shape::Returned);
/// Its count goes to an `int`, and Debian's builds have none.
const EARLY_DATA: Carrier = (
    "wolfSSL_write_early_data",
    Direction::Sent,
    Shape::OutFourth,
);
/// An object has one owner, so its end is what `wolfSSL_free` says.
#[rustfmt::skip]
const OTHERS: [Carrier; 5] = [
    ("wolfSSL_new",     Direction::Received, Shape::Created),
    ("wolfSSL_connect", Direction::Received, Shape::Handshake),
    ("wolfSSL_accept",  Direction::Received, Shape::Handshake),
    ("wolfSSL_clear",   Direction::Received, Shape::Cleared),
    ("wolfSSL_free",    Direction::Received, Shape::Cleared),
];

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let symbols = elf.functions(&names(&[&EXPORTS, &[PEEK, EARLY_DATA], &OTHERS]))?;
    let has = |name| symbols.iter().any(|symbol| symbol.name == name);
    if !has("wolfSSL_read") || !has("wolfSSL_write") {
        return Err(Refusal::NoLibrary);
    }

    let mut carriers = entries(elf, &symbols, &EXPORTS)?;
    let peek = entries(elf, &symbols, &[PEEK])?;
    let count = carriers.len();
    carriers.extend(peek);
    if !share_a_function(&carriers, ["wolfSSL_read", PEEK.0]) {
        return Err(Refusal::Unsafe(
            "its read and its peek share no inner function",
        ));
    }
    carriers.truncate(count);
    let carriers = independent(carriers)?;
    Ok(Found {
        library: "wolfSSL",
        version: None,
        points: points(elf, &carriers)?,
        others: others(elf, &symbols, &OTHERS, &carriers),
        partly: has(EARLY_DATA.0).then_some("early data is not seen"),
        located: means::SYMBOLS,
        on_trial: false,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            image::{
                Piece::{self, Bytes, Call, Jump, JumpThrough},
                image,
            },
            locate,
        },
        *,
    };

    const PUSH: Piece = Bytes(&[0x55, 0x5d]);
    const RET: Piece = Bytes(&[0xc3]);

    /// As Debian's 5.5 and 5.7.
    fn functions() -> Vec<(&'static str, &'static [Piece])> {
        vec![
            (".receive", &[PUSH, RET]),
            (".plt", &[JumpThrough("wolfSSL_write")]),
            ("wolfSSL_read", &[PUSH, Jump(".receive")]),
            ("wolfSSL_peek", &[Jump(".receive")]),
            ("wolfSSL_recv", &[PUSH, Call("wolfSSL_read"), RET]),
            ("wolfSSL_write", &[PUSH, RET]),
            ("wolfSSL_send", &[PUSH, Call(".plt"), RET]),
            ("wolfSSL_new", &[PUSH, RET]),
            ("wolfSSL_free", &[PUSH, RET]),
        ]
    }

    #[test]
    fn who_calls_another_is_seen_there() {
        let found = locate(&image(&functions())).unwrap();
        let names = |points: &[super::super::Point]| -> Vec<_> {
            points.iter().map(|point| point.function).collect()
        };
        assert_eq!(found.library, "wolfSSL");
        assert_eq!(names(&found.points), ["wolfSSL_read", "wolfSSL_write"]);
        assert_eq!(names(&found.others), ["wolfSSL_new", "wolfSSL_free"]);
        assert_eq!(found.partly, None);
    }

    #[test]
    fn names_alone_are_refused() {
        let mut apart = functions();
        apart[3].1 = &[PUSH, RET];
        let why = locate(&image(&apart)).unwrap_err().to_string();
        assert!(why.contains("no inner function"), "{why}");
        let mut half = functions();
        half.retain(|(name, _)| *name != "wolfSSL_write");
        half[1].1 = &[RET];
        half.retain(|(name, _)| *name != "wolfSSL_send");
        assert_eq!(locate(&image(&half)), Err(Refusal::NoLibrary));
    }
}
