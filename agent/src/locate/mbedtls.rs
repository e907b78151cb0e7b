//! Mbed TLS, found by its symbols and proved by its call graph.
//!
//! There is one function for each direction, and no other exported one calls it. Both do the handshake first, if
//! it is not done yet, by the function that programs call for it.

use agent_ebpf::{Direction, Shape};

use super::{
    Found, Refusal,
    carrier::{Carrier, addresses, entries, independent, names, others, points},
    elf::Elf,
    means,
};

/// Early data since 3.6. All return the number of bytes, or an error below zero.
#[rustfmt::skip]
const EXPORTS: [Carrier; 4] = [
    ("mbedtls_ssl_read",             Direction::Received, Shape::Returned),
    ("mbedtls_ssl_read_early_data",  Direction::Received, Shape::Returned),
    ("mbedtls_ssl_write",            Direction::Sent,     Shape::Returned),
    ("mbedtls_ssl_write_early_data", Direction::Sent,     Shape::Returned),
];
/// Not probed: a call of it inside a read would be a second one of the same handle.
const HANDSHAKE: Carrier = (
    "mbedtls_ssl_handshake",
    Direction::Received,
    Shape::Handshake,
);
/// The object is the program's own. Where its use ends is known, and there the next one begins.
#[rustfmt::skip]
const OTHERS: [Carrier; 2] = [
    ("mbedtls_ssl_session_reset", Direction::Received, Shape::Cleared),
    ("mbedtls_ssl_free",          Direction::Received, Shape::Cleared),
];

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let symbols = elf.functions(&names(&[&EXPORTS, &[HANDSHAKE], &OTHERS]))?;
    let has = |name| symbols.iter().any(|symbol| symbol.name == name);
    if !has("mbedtls_ssl_read") || !has("mbedtls_ssl_write") {
        return Err(Refusal::NoLibrary);
    }

    let carriers = independent(entries(elf, &symbols, &EXPORTS)?)?;
    let handshake = addresses(&entries(elf, &symbols, &[HANDSHAKE])?);
    let mut main = carriers
        .iter()
        .filter(|entry| matches!(entry.name, "mbedtls_ssl_read" | "mbedtls_ssl_write"));
    if !main.all(|entry| entry.leads_into(&handshake)) {
        return Err(Refusal::Unsafe("its functions do no handshake"));
    }
    Ok(Found {
        library: "Mbed TLS",
        version: None,
        points: points(elf, &carriers)?,
        others: others(elf, &symbols, &OTHERS, &carriers),
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
                Piece::{self, Bytes, Call},
                image,
            },
            locate,
        },
        *,
    };

    const PUSH: Piece = Bytes(&[0x55, 0x5d]);
    const RET: Piece = Bytes(&[0xc3]);
    const SHAKES: &[Piece] = &[PUSH, Call("mbedtls_ssl_handshake"), RET];

    #[test]
    fn both_directions_shake_hands() {
        let functions = |read, write| -> Vec<(&'static str, &'static [Piece])> {
            vec![
                ("mbedtls_ssl_handshake", &[PUSH, RET]),
                ("mbedtls_ssl_read", read),
                ("mbedtls_ssl_write", write),
                ("mbedtls_ssl_free", &[PUSH, RET]),
            ]
        };
        let found = locate(&image(&functions(SHAKES, SHAKES))).unwrap();
        assert_eq!(found.library, "Mbed TLS");
        assert_eq!((found.points.len(), found.others.len()), (2, 1));
        let plain: &[Piece] = &[PUSH, RET];
        for (read, write) in [(plain, SHAKES), (SHAKES, plain)] {
            let why = locate(&image(&functions(read, write))).unwrap_err();
            assert_eq!(why, Refusal::Unsafe("its functions do no handshake"));
        }
    }
}
