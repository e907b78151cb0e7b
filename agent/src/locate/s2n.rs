//! s2n-tls, found by its symbols and proved by its call graph.
//!
//! `s2n_send` makes a vector of its buffer and hands it to the function that `s2n_sendv` hands its own to: below
//! the exports there is no buffer in an argument register. `s2n_recv` guards the function that does the work,
//! and where the kernel refuses a probe on the guard's first instruction (awscrt's builds pad it with prefixes),
//! that function is probed, which nobody else calls.

use agent_ebpf::{Direction, Shape};

use super::{
    Found, Refusal,
    carrier::{
        Carrier, Entry, arguments, callers, entries, independent, names, others, points,
        share_a_function,
    },
    elf::Elf,
    means,
};

/// All return the number of bytes, or -1. The fourth argument says what a call waits for.
const RECV: Carrier = ("s2n_recv", Direction::Received, Shape::Returned);
const SEND: Carrier = ("s2n_send", Direction::Sent, Shape::Returned);
const RECV_IMPL: &str = "s2n_recv_impl";
const SENDV: [Carrier; 1] = [("s2n_sendv", Direction::Sent, Shape::Returned)];
#[rustfmt::skip]
const OTHERS: [Carrier; 4] = [
    ("s2n_connection_new",  Direction::Received, Shape::Created),
    ("s2n_negotiate",       Direction::Received, Shape::Handshake),
    ("s2n_connection_wipe", Direction::Received, Shape::Cleared),
    ("s2n_connection_free", Direction::Received, Shape::Cleared),
];

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let symbols = elf.functions(&names(&[&[RECV, SEND], &SENDV, &OTHERS]))?;
    let has = |name| symbols.iter().any(|symbol| symbol.name == name);
    if !has(RECV.0) || !has(SEND.0) {
        return Err(Refusal::NoLibrary);
    }

    let mut writes = entries(elf, &symbols, &[SEND])?;
    writes.extend(entries(elf, &symbols, &SENDV)?);
    if !share_a_function(&writes, [SEND.0, SENDV[0].0]) {
        return Err(Refusal::Unsafe("its two writes share no inner function"));
    }
    writes.truncate(1);
    let mut carriers = entries(elf, &symbols, &[RECV])?;
    if let [recv] = &mut carriers[..]
        && recv.function.place(arguments(recv.shape)).is_none()
        && let Some(inner) = guarded(elf, recv)?
    {
        *recv = inner;
    }
    carriers.extend(writes);
    let carriers = independent(carriers)?;
    Ok(Found {
        library: "s2n-tls",
        version: None,
        points: points(elf, &carriers)?,
        others: others(elf, &symbols, &OTHERS, &carriers),
        partly: Some("what s2n_sendv and s2n_sendfile send is not seen"),
        located: means::SYMBOLS,
        on_trial: false,
    })
}

/// The function that `recv` calls first, with the arguments that it got itself, and that is called by nobody else.
fn guarded(elf: &Elf<'_>, recv: &Entry) -> Result<Option<Entry>, Refusal> {
    let Some(address) = recv.function.hands_on(arguments(Shape::OutFourth)) else {
        return Ok(None);
    };
    if callers(elf, address)? != Some(vec![recv.function.address]) {
        return Ok(None);
    }
    Entry::read(elf, (RECV_IMPL, recv.direction, recv.shape), address)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            image::{
                Piece::{self, Bytes, Call, Jump},
                image,
            },
            locate,
        },
        *,
    };

    const PUSH: Piece = Bytes(&[0x55, 0x5d]);
    const RET: Piece = Bytes(&[0xc3]);
    /// cs cs push %r12: nothing that the kernel would take before the arguments are gone.
    const PADDED: Piece = Bytes(&[0x2e, 0x2e, 0x41, 0x54]);

    fn functions(recv: &'static [Piece]) -> Vec<(&'static str, &'static [Piece])> {
        vec![
            (".sendv", &[PUSH, RET]),
            (".recv", &[PUSH, RET]),
            ("s2n_send", &[PUSH, Call(".sendv"), RET]),
            ("s2n_sendv", &[Jump(".sendv")]),
            ("s2n_recv", recv),
        ]
    }

    fn reads(functions: &[(&'static str, &'static [Piece])]) -> Result<&'static str, Refusal> {
        let found = locate(&image(functions))?;
        assert_eq!(
            (found.library, found.points[1].function),
            ("s2n-tls", "s2n_send")
        );
        Ok(found.points[0].function)
    }

    #[test]
    fn below_a_guard_that_can_not_be_probed() {
        assert_eq!(
            reads(&functions(&[PUSH, Call(".recv"), RET])),
            Ok("s2n_recv")
        );
        let padded: &[Piece] = &[PADDED, Call(".recv"), RET];
        assert_eq!(reads(&functions(padded)), Ok(RECV_IMPL));
        // mov %rdi,%rsi: it gets other arguments.
        let changed: &[Piece] = &[PADDED, Bytes(&[0x48, 0x89, 0xfe]), Call(".recv"), RET];
        assert!(matches!(
            reads(&functions(changed)),
            Err(Refusal::Unsafe(_))
        ));
        // Somebody else calls it.
        let mut shared = functions(padded);
        shared.push((".other", &[Call(".recv"), RET]));
        assert!(matches!(reads(&shared), Err(Refusal::Unsafe(_))));
    }

    #[test]
    fn names_alone_are_refused() {
        let mut apart = functions(&[PUSH, Call(".recv"), RET]);
        apart[3].1 = &[PUSH, RET];
        let why = reads(&apart).unwrap_err().to_string();
        assert!(why.contains("two writes share no"), "{why}");
    }
}
