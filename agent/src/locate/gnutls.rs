//! GnuTLS, found by its symbols and proved by its call graph.
//!
//! `gnutls_record_send` is a jump to `gnutls_record_send2` since 3.6.3, so that one is what every write passes.
//! The reads have no such function among the exports: `gnutls_record_recv` and `gnutls_record_recv_seq` lead
//! into one inner function, which has its arguments in other registers and which kernel TLS goes round. Both
//! exports are probed: neither leads into the other.
//!
//! A corked session takes all that is written and sends it when it is uncorked, by a call of the same function:
//! those writes inside of `gnutls_record_uncork` must not be counted again.

use agent_ebpf::{Direction, Shape};

use super::{
    Found, Refusal,
    carrier::{Carrier, entries, independent, names, others, points, share_a_function},
    elf::Elf,
    function::resolve,
    means,
};

/// All return the number of bytes, or an error below zero.
#[rustfmt::skip]
const EXPORTS: [Carrier; 6] = [
    ("gnutls_record_recv",            Direction::Received, Shape::Returned),
    ("gnutls_record_recv_seq",        Direction::Received, Shape::Returned),
    ("gnutls_record_recv_early_data", Direction::Received, Shape::Returned),
    ("gnutls_record_send",            Direction::Sent,     Shape::Returned),
    ("gnutls_record_send2",           Direction::Sent,     Shape::Returned),
    ("gnutls_record_send_range",      Direction::Sent,     Shape::Returned),
];
/// Two reads that share an inner function, and nothing else has their names.
const READS: [&str; 2] = ["gnutls_record_recv", "gnutls_record_recv_seq"];
const UNCORK: Carrier = ("gnutls_record_uncork", Direction::Sent, Shape::Flushed);
/// `gnutls_init` is none of them: its object comes through a pointer. Where one ends is known, and that is
/// where the next one at its address begins.
#[rustfmt::skip]
const OTHERS: [Carrier; 2] = [
    ("gnutls_handshake", Direction::Received, Shape::Handshake),
    ("gnutls_deinit",    Direction::Received, Shape::Cleared),
];

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let symbols = elf.functions(&names(&[&EXPORTS, &[UNCORK], &OTHERS]))?;
    let has = |name| symbols.iter().any(|symbol| symbol.name == name);
    if !READS.into_iter().all(has) || !has("gnutls_record_send") {
        return Err(Refusal::NoLibrary);
    }

    let carriers = entries(elf, &symbols, &EXPORTS)?;
    if !share_a_function(&carriers, READS) {
        return Err(Refusal::Unsafe("its two reads share no inner function"));
    }
    let writes: Vec<_> = carriers
        .iter()
        .filter(|entry| entry.direction == Direction::Sent)
        .map(|entry| entry.function.address)
        .collect();
    let carriers = independent(carriers)?;
    let points = points(elf, &carriers)?;

    let mut flushing = Vec::new();
    for uncork in entries(elf, &symbols, &[UNCORK])? {
        if !uncork.leads_into(&writes) {
            continue;
        }
        // Without this point the bytes would come twice, so there is no library without it.
        for target in uncork.function.jumps() {
            if resolve(elf, target)?.is_some_and(|target| writes.contains(&target)) {
                return Err(Refusal::Unsafe("what it held back is sent by a jump"));
            }
        }
        flushing.push(uncork.point(elf)?);
    }
    flushing.extend(others(elf, &symbols, &OTHERS, &carriers));
    Ok(Found {
        library: "GnuTLS",
        version: None,
        points,
        others: flushing,
        partly: None,
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

    type Functions = Vec<(&'static str, &'static [Piece])>;

    const PUSH: Piece = Bytes(&[0x55, 0x5d]);
    const RET: Piece = Bytes(&[0xc3]);

    /// As Debian's 3.7.
    fn functions() -> Functions {
        vec![
            (".receive", &[PUSH, RET]),
            (".plt", &[JumpThrough("gnutls_record_send2")]),
            ("gnutls_record_send", &[Jump(".plt")]),
            ("gnutls_record_send2", &[PUSH, RET]),
            ("gnutls_record_recv", &[PUSH, Call(".receive"), RET]),
            ("gnutls_record_recv_seq", &[Jump(".receive")]),
            (
                "gnutls_record_uncork",
                &[PUSH, Call("gnutls_record_send"), RET],
            ),
            ("gnutls_handshake", &[PUSH, RET]),
            ("gnutls_deinit", &[PUSH, RET]),
        ]
    }

    fn replaced(name: &str, pieces: &'static [Piece]) -> Functions {
        let mut functions = functions();
        let mut known = functions.iter_mut();
        known.find(|(known, _)| *known == name).unwrap().1 = pieces;
        functions
    }

    fn names(functions: &Functions) -> Result<Vec<&'static str>, Refusal> {
        let found = locate(&image(functions))?;
        let all = found.points.iter().chain(&found.others);
        Ok(all.map(|point| point.function).collect())
    }

    #[test]
    fn writes_pass_one_function() {
        let mut expected = vec![
            "gnutls_record_recv",
            "gnutls_record_recv_seq",
            "gnutls_record_send2",
            "gnutls_record_uncork",
            "gnutls_handshake",
            "gnutls_deinit",
        ];
        assert_eq!(names(&functions()), Ok(expected.clone()));
        // Before 3.6.3.
        let mut old = functions();
        old.retain(|(name, _)| !matches!(*name, ".plt" | "gnutls_record_send2"));
        old[1].1 = &[PUSH, RET];
        expected[2] = "gnutls_record_send";
        assert_eq!(names(&old), Ok(expected.clone()));
        // Two return probes on one frame.
        expected[2] = "gnutls_record_send2";
        expected.remove(4);
        let joined = replaced("gnutls_handshake", &[Jump("gnutls_record_recv")]);
        assert_eq!(names(&joined), Ok(expected));
    }

    #[test]
    fn refusals() {
        let why = |functions: &Functions| names(functions).unwrap_err().to_string();
        let apart = replaced("gnutls_record_recv_seq", &[PUSH, RET]);
        assert!(why(&apart).contains("no inner function"));
        let jump = replaced("gnutls_record_uncork", &[Jump("gnutls_record_send2")]);
        assert!(why(&jump).contains("by a jump"));
        let locked = replaced(
            "gnutls_record_uncork",
            &[Bytes(&[0xf0, 0x01, 0x07]), Call("gnutls_record_send"), RET],
        );
        assert!(why(&locked).contains("the kernel refuses"));
        let mut half = functions();
        half.retain(|(name, _)| *name != "gnutls_record_recv_seq");
        assert_eq!(names(&half), Err(Refusal::NoLibrary));
    }

    #[test]
    fn two_libraries_in_one_file() {
        let mut both = functions();
        both.extend([
            ("SSL_read", &[PUSH, RET] as &[Piece]),
            ("SSL_write", &[PUSH, RET]),
        ]);
        let found = locate(&image(&both)).unwrap();
        assert_eq!(found.library, "several TLS libraries");
        assert_eq!(found.points.len(), 5);
        // The one that can't be probed is said.
        let at = both.len() - 1;
        both[at].1 = &[Bytes(&[0xf0, 0x01, 0x07]), RET];
        let found = locate(&image(&both)).unwrap();
        assert_eq!(found.library, "GnuTLS");
        assert!(found.partly.is_some());
    }
}
