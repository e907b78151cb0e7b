//! NSS, found by its table of operations.
//!
//! Programs call `PR_Read` and its like, for files, pipes and sockets alike; a descriptor with a layer of TLS on
//! it leads into libssl3, which asks a table of the connection what to do. The table of those with TLS holds
//! the two functions that every read and every write passes, however the program made it. They have no
//! symbols, but beside them are the two that only pass "no flags" on to them:
//!
//! ```text
//! …, close, recv, send, read, write, …      read(ss, buf, len)  = recv(ss, buf, len, 0)
//!                                           write(ss, buf, len) = send(ss, buf, len, 0)
//! ```
//!
//! The handle is the connection's state, which all descriptors of it share.

use agent_ebpf::{Direction, Shape};
use iced_x86::Register;

use super::{
    Found, Refusal,
    carrier::{Carrier, Entry, independent, points},
    elf::Elf,
    function::forwards,
    means,
};

/// What makes a TLS connection of a descriptor. No other library has it.
const SIGN: &str = "SSL_ImportFD";
const CLOSE: Carrier = ("ssl_SecureClose", Direction::Received, Shape::Cleared);
const RECV: Carrier = ("ssl_SecureRecv", Direction::Received, Shape::Peekable);
const SEND: Carrier = ("ssl_SecureSend", Direction::Sent, Shape::Returned);

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    if elf.functions(&[SIGN])?.is_empty() {
        return Err(Refusal::NoLibrary);
    }
    let [close, recv, send] = operations(elf)?;
    let read = |carrier, address| -> Result<Entry, Refusal> {
        let entry = Entry::read(elf, carrier, address)?;
        entry.ok_or(Refusal::Unsafe("the end of a function is not known"))
    };
    let carriers = independent(vec![read(RECV, recv)?, read(SEND, send)?])?;
    let close = Entry::read(elf, CLOSE, close)?.filter(|close| !close.shares_frames(&carriers));
    Ok(Found {
        library: "NSS",
        version: None,
        points: points(elf, &carriers)?,
        others: close
            .and_then(|close| close.point(elf).ok())
            .into_iter()
            .collect(),
        partly: None,
        located: means::OPERATIONS,
        on_trial: false,
    })
}

/// Where the connections with TLS lead: close, recv and send.
fn operations(elf: &Elf<'_>) -> Result<[u64; 3], Refusal> {
    let mut found = None;
    for entries in elf.relocated()?.array_windows::<5>() {
        let is_table = entries
            .array_windows()
            .all(|[(first, _), (second, _)]| first + 8 == *second);
        let [close, recv, send, read, write] = entries.map(|(_, target)| target);
        if !is_table
            || !forwards(elf, read, Register::RCX, recv)?
            || !forwards(elf, write, Register::RCX, send)?
        {
            continue;
        }
        if found.replace([close, recv, send]).is_some() {
            return Err(Refusal::Unsafe("it has two tables of operations"));
        }
    }
    found.ok_or(Refusal::Unsafe("its table of operations is not found"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            image::{
                Piece::{self, Bytes, Jump},
                image,
            },
            locate,
        },
        *,
    };

    const PUSH: Piece = Bytes(&[0x55, 0x5d, 0xc3]);
    const ENDBR: Piece = Bytes(&[0xf3, 0x0f, 0x1e, 0xfa]);
    /// xor %ecx,%ecx; xor %edx,%edx
    const NO_FLAGS: Piece = Bytes(&[0x31, 0xc9]);
    const NO_LENGTH: Piece = Bytes(&[0x31, 0xd2]);
    /// push %rbp; mov %rsp,%rbp; xor %ecx,%ecx; pop %rbp
    const FRAMED: Piece = Bytes(&[0x55, 0x48, 0x89, 0xe5, 0x31, 0xc9, 0x5d]);

    type Functions = Vec<(&'static str, &'static [Piece])>;

    /// An image has a pointer to each of its functions, in their order.
    fn functions(read: &'static [Piece], write: &'static [Piece]) -> Functions {
        vec![
            ("SSL_ImportFD", &[PUSH]),
            (".shutdown", &[PUSH]),
            (".close", &[PUSH]),
            (".recv", &[PUSH]),
            (".send", &[ENDBR, PUSH]),
            (".read", read),
            (".write", write),
            (".peername", &[PUSH]),
        ]
    }

    #[test]
    fn the_table_says_what_is_what() {
        let write: &[Piece] = &[NO_FLAGS, Jump(".send")];
        let variants: [&[Piece]; 3] = [
            &[NO_FLAGS, Jump(".recv")],
            &[ENDBR, NO_FLAGS, Jump(".recv")],
            &[FRAMED, Jump(".recv")],
        ];
        for read in variants {
            let found = locate(&image(&functions(read, write))).unwrap();
            let all = found.points.iter().chain(&found.others);
            let all: Vec<_> = all.map(|point| (point.function, point.shape)).collect();
            assert_eq!(found.library, "NSS");
            assert_eq!(
                all,
                [
                    ("ssl_SecureRecv", Shape::Peekable),
                    ("ssl_SecureSend", Shape::Returned),
                    ("ssl_SecureClose", Shape::Cleared)
                ]
            );
            assert_eq!(found.points[1].offset, found.points[1].function_offset + 4);
        }
    }

    #[test]
    fn another_table_is_none() {
        let (read, write): (&[Piece], &[Piece]) =
            (&[NO_FLAGS, Jump(".recv")], &[NO_FLAGS, Jump(".send")]);
        let cases: [(&[Piece], &[Piece]); 4] = [
            (&[Jump(".recv")], write),
            (&[NO_LENGTH, Jump(".recv")], write),
            (&[NO_FLAGS, Jump(".send")], write),
            (read, &[PUSH]),
        ];
        for (read, write) in cases {
            let why = locate(&image(&functions(read, write))).unwrap_err();
            assert_eq!(why, Refusal::Unsafe("its table of operations is not found"));
        }
        let mut twice = functions(read, write);
        let again: Functions = vec![
            (".close2", &[PUSH]),
            (".recv2", &[PUSH]),
            (".send2", &[PUSH]),
            (".read2", &[NO_FLAGS, Jump(".recv2")]),
            (".write2", &[NO_FLAGS, Jump(".send2")]),
        ];
        twice.extend(again);
        let why = locate(&image(&twice)).unwrap_err();
        assert_eq!(why, Refusal::Unsafe("it has two tables of operations"));
        let mut nameless = functions(read, write);
        nameless[0].0 = ".import";
        assert_eq!(locate(&image(&nameless)), Err(Refusal::NoLibrary));
    }
}
