//! rustls inside a program, with its symbols or without, found by where the compiler puts its virtual tables.
//!
//! rustls has no function that takes a connection and a buffer and is always there. What no compiler can inline
//! is the call of a trait object: each record is sealed by a `MessageEncrypter` and opened by a
//! `MessageDecrypter`, one pair for each provider, version of TLS and kind of cipher. The two tables of a pair
//! stand side by side with the place of a panic between them, which names its file:
//!
//! ```text
//! drop, size, alignment, decrypt                                     vtable of the decrypter
//! ".../rustls-0.23.46/src/crypto/ring/tls13.rs", length, line        core::panic::Location
//! drop, size, alignment, encrypt, encrypted_payload_len              vtable of the encrypter
//! ```
//!
//! or the encrypter's before the decrypter's. Pairs follow each other, so that one's first table and its neighbour's
//! second look like a pair in the other order; but only one order gives all pairs that a file must have.
//!
//! `encrypted_payload_len` says it once more: it adds a number that only this kind of record adds, so the file
//! and the code have to agree. What the functions are given and return is rustls' own and not C's; the
//! kernel side knows it for the versions named here, and looks for itself whether it finds what it expects.

use std::ptr;

use agent_ebpf::{Direction, Shape};
use iced_x86::Register;

use super::{
    Found, Refusal,
    carrier::{Carrier, Entry},
    elf::Elf,
    function::Function,
    means,
};

/// The directory that cargo unpacks it into.
const NAME: &[u8] = b"/rustls-0.";
/// The minor version whose structures are known.
const MINOR: &str = "23";
/// Longest path of a source file.
const PATH_MAX: u64 = 512;
/// Modules of it: a name in the path, and what each pair in it adds to a record: one byte for the type and 16
/// for the tag; 8 for the nonce and 16 for the tag; the tag. One place in memory, by which a module is known.
static MODULES: [(&str, &[u8]); 4] = [
    ("/src/crypto/aws_lc_rs/tls13.rs", &[0x11, 0x11]),
    ("/src/crypto/aws_lc_rs/tls12.rs", &[0x18, 0x10]),
    ("/src/crypto/ring/tls13.rs", &[0x11]),
    ("/src/crypto/ring/tls12.rs", &[0x18, 0x10]),
];

const ENCRYPT: Carrier = (
    "MessageEncrypter::encrypt",
    Direction::Sent,
    Shape::Encrypted,
);
const DECRYPT: Carrier = (
    "MessageDecrypter::decrypt",
    Direction::Received,
    Shape::Decrypted,
);

/// Words around a place: a table before it and one behind, each of which may be the longer one.
const WORDS: usize = 13;
const PLACE: usize = 5;
/// Where the tables are among them.
struct Order {
    decrypter: usize,
    encrypter: usize,
}
const ORDERS: [Order; 2] = [
    Order {
        decrypter: 1,
        encrypter: 8,
    },
    Order {
        decrypter: 8,
        encrypter: 0,
    },
];
/// Words of a table.
const DROP: usize = 0;
const SIZE: usize = 1;
const ALIGNMENT: usize = 2;
const METHOD: usize = 3;
const LENGTH: usize = 4;
/// No cipher's state is larger; ring's has 560 bytes.
const SIZE_MAX: u64 = 4096;

/// One of rustls' source files, as this file names it.
struct Source {
    /// Address behind the last character of its path, and whether a NUL stands there.
    end: u64,
    has_nul: bool,
    version: String,
    /// What the pairs of this module add, each once.
    adds: &'static [u8],
}

impl Source {
    /// Could a path with this length end there? Rust 1.89 counts the NUL, those before and after it do not.
    fn ends(&self, end: u64) -> bool {
        end == self.end || (self.has_nul && end == self.end + 1)
    }
}

/// The methods of a decrypter and its encrypter, and what the pairs of their module add.
struct Pair {
    decrypt: u64,
    encrypt: u64,
    module: &'static [u8],
}

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let mut names = elf.strings_from(NAME, PATH_MAX as usize)?;
    names.retain(|(_, path)| is_source(path));
    if names.is_empty() {
        return Err(Refusal::NoLibrary);
    }
    let sources = sources(&names);
    if sources.is_empty() {
        return Err(Refusal::Unsafe(
            "neither ring nor aws-lc-rs of a known rustls is in it",
        ));
    }
    let version = &sources[0].version;
    if sources.iter().any(|source| source.version != *version) {
        return Err(Refusal::Unsafe("there are two versions of rustls"));
    }

    let (mut points, mut entries): (Vec<_>, Vec<Entry>) = (Vec::new(), Vec::new());
    let pairs = pairs(elf, &sources)?;
    for pair in &pairs {
        for (carrier, address) in [(DECRYPT, pair.decrypt), (ENCRYPT, pair.encrypt)] {
            let mut known = entries.iter();
            if let Some(known) = known.find(|known| known.function.address == address) {
                // Both of a kind may be one function; a probe can't be both.
                if known.direction != carrier.1 {
                    return Err(Refusal::Unsafe("one function encrypts and decrypts"));
                }
                continue;
            }
            let function = Function::entered(elf, address)?;
            let function = function.filter(takes_a_message).ok_or(Refusal::Unsafe(
                "its encrypters and decrypters take other arguments",
            ))?;
            let entry = Entry::of(elf, carrier, function)?;
            points.push(entry.point(elf)?);
            entries.push(entry);
        }
    }
    if points.is_empty() {
        return Err(Refusal::Unsafe(
            "its encrypters are not beside its decrypters",
        ));
    }
    let addresses: Vec<_> = entries.iter().map(|entry| entry.function.address).collect();
    if entries.iter().any(|entry| entry.leads_into(&addresses)) {
        return Err(Refusal::Unsafe("its functions lead into each other"));
    }
    let has_all = sources
        .iter()
        .all(|source| of_module(&pairs, source.adds) >= source.adds.len());
    let partly = match (has_all, is_only(&names)) {
        (false, _) => Some("some of its ciphers were not found: who uses those is not seen"),
        (true, false) => Some("it has an older rustls inside, too, whose users are not seen"),
        (true, true) => None,
    };
    Ok(Found {
        library: "rustls",
        version: Some(version.clone()),
        points,
        others: Vec::new(),
        partly,
        located: means::VTABLES,
        on_trial: false,
    })
}

/// Is it the path of a source file? We have the name inside of us, too.
fn is_source(path: &[u8]) -> bool {
    let is_version = |byte: &&u8| byte.is_ascii_digit() || **byte == b'.';
    let path = &path[NAME.len()..];
    let size = path.iter().take_while(is_version).count();
    size > 0 && path[size..].starts_with(b"/src/")
}

/// Is there no other minor version?
fn is_only(names: &[(u64, Vec<u8>)]) -> bool {
    let mut minors = names.iter().map(|(_, path)| &path[NAME.len()..]);
    minors.all(|minor| minor.starts_with(MINOR.as_bytes()))
}

/// The modules with ciphers among the paths that begin with [`NAME`].
fn sources(names: &[(u64, Vec<u8>)]) -> Vec<Source> {
    let mut sources = Vec::new();
    for (address, bytes) in names {
        let path = &bytes[NAME.len()..];
        let is_version = |byte: &&u8| byte.is_ascii_digit() || **byte == b'.';
        let size = path.iter().take_while(is_version).count();
        let Ok(version) = std::str::from_utf8(&path[..size]) else {
            continue;
        };
        if version.split('.').next() != Some(MINOR) {
            continue;
        }
        let module = MODULES
            .iter()
            .find(|(name, _)| path[size..].starts_with(name.as_bytes()));
        if let Some((name, adds)) = module {
            let length = NAME.len() + size + name.len();
            sources.push(Source {
                end: address + length as u64,
                has_nul: bytes.get(length) == Some(&0),
                version: format!("0.{version}"),
                adds,
            });
        }
    }
    sources
}

/// All places where the three structures are.
fn pairs(elf: &Elf<'_>, sources: &[Source]) -> Result<Vec<Pair>, Refusal> {
    let is_path = |target: u64| {
        let mut ends = sources.iter().map(|source| source.end);
        ends.any(|end| target < end && end - target <= PATH_MAX)
    };
    let places = elf.pointers(|_, target| is_path(target))?;
    let starts: Vec<u64> = places
        .iter()
        .map(|(address, _)| address.wrapping_sub(PLACE as u64 * 8))
        .collect();
    let is_near = |address: u64| {
        let mut starts = starts.iter();
        starts.any(|start| address.wrapping_sub(*start) < WORDS as u64 * 8)
    };
    let pointers = elf.pointers(|address, _| is_near(address))?;
    let mut found = ORDERS.map(|_| Vec::new());
    for start in starts {
        let Some(mut words) = elf.words::<WORDS>(start)? else {
            continue;
        };
        for (address, target) in &pointers {
            let index = address.wrapping_sub(start) / 8;
            if let Some(word) = words.get_mut(index as usize) {
                *word = *target;
            }
        }
        let end = words[PLACE].wrapping_add(words[PLACE + 1]);
        let Some(source) = sources.iter().find(|source| source.ends(end)) else {
            continue;
        };
        for (order, found) in ORDERS.iter().zip(&mut found) {
            found.extend(pair(elf, &words, order, source.adds)?);
        }
    }
    Ok(in_their_order(found))
}

/// The pair around a place, if there is one in this order.
fn pair(
    elf: &Elf<'_>,
    words: &[u64; WORDS],
    order: &Order,
    module: &'static [u8],
) -> Result<Option<Pair>, Refusal> {
    let [decrypter, encrypter] = [order.decrypter, order.encrypter].map(|at| &words[at..]);
    if !is_table(elf, decrypter) || !is_table(elf, encrypter) {
        return Ok(None);
    }
    let added = added(elf, encrypter[LENGTH])?;
    let is_module = added.is_some_and(|added| module.contains(&added));
    Ok(is_module.then(|| Pair {
        decrypt: decrypter[METHOD],
        encrypt: encrypter[METHOD],
        module,
    }))
}

fn of_module(pairs: &[Pair], module: &[u8]) -> usize {
    let pairs = pairs.iter();
    pairs.filter(|pair| ptr::eq(pair.module, module)).count()
}

/// The pairs of each module in the order in which it has all; in the only one in which it has some; or none.
fn in_their_order([first, second]: [Vec<Pair>; 2]) -> Vec<Pair> {
    let is_first = |module: &[u8]| match [&first, &second].map(|pairs| of_module(pairs, module)) {
        [count, _] if count >= module.len() => Some(true),
        [_, count] if count >= module.len() => Some(false),
        [_, 0] => Some(true),
        [0, _] => Some(false),
        _ => None,
    };
    let orders: Vec<_> = MODULES.map(|(_, module)| (module, is_first(module))).into();
    let is_in = |pair: &Pair, order: bool| {
        let mut orders = orders.iter();
        orders.any(|(module, is_first)| ptr::eq(*module, pair.module) && *is_first == Some(order))
    };
    let firsts = first.into_iter().filter(|pair| is_in(pair, true));
    let mut pairs: Vec<_> = firsts.collect();
    pairs.extend(second.into_iter().filter(|pair| is_in(pair, false)));
    pairs
}

/// Could these words begin the virtual table of a cipher?
fn is_table(elf: &Elf<'_>, table: &[u64]) -> bool {
    let (size, alignment) = (table[SIZE], table[ALIGNMENT]);
    let is_layout = matches!(alignment, 8 | 16 | 32 | 64)
        && size.is_multiple_of(alignment)
        && (1..=SIZE_MAX).contains(&size);
    is_layout && (table[DROP] == 0 || elf.is_code(table[DROP])) && elf.is_code(table[METHOD])
}

/// What the function at `address` adds to its second argument, if it does nothing else: `lea x(%rsi),%rax; ret`,
/// in a frame of its own or without.
fn added(elf: &Elf<'_>, address: u64) -> Result<Option<u8>, Refusal> {
    let Some((_, code)) = elf.code(address..address.saturating_add(10))? else {
        return Ok(None);
    };
    Ok(match code[..] {
        [0x48, 0x8d, 0x46, added, 0xc3, ..]
        | [0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x46, added, 0x5d, 0xc3] => Some(added),
        _ => None,
    })
}

/// Where the result goes, itself and the message; behind them its number; and no more. Itself may be read only behind
/// a table of jumps, by the kind of the message, and so may the number.
fn takes_a_message(function: &Function) -> bool {
    let takes = |register| function.takes(register);
    let takes_all =
        takes(Register::RDI) && function.may_take(Register::RSI) && takes(Register::RDX);
    takes_all && !takes(Register::R8) && !takes(Register::R9)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Instruction, locate, tests::flip_bits},
        *,
    };

    const CODE: u64 = 0x1000;
    const DATA: u64 = 0x2000;
    /// Addresses are not file offsets, so that mixing them up shows.
    const BASE: u64 = 0x40_0000;
    const ROOM: u64 = 0x40;
    const PATH: &str = "/home/me/registry/rustls-0.23.46/src/crypto/ring/tls13.rs";
    const PATH_12: &str = "/home/me/registry/rustls-0.23.46/src/crypto/ring/tls12.rs";

    /// push %rbp; mov %rsp,%rbp; mov %rdi,%rbx; mov (%rdx),%rax; mov %rsi,%r14; mov %rcx,%r12; pop %rbp; ret
    const METHOD_CODE: &[u8] = &[
        0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xfb, 0x48, 0x8b, 0x02, 0x49, 0x89, 0xf6, 0x49, 0x89,
        0xcc, 0x5d, 0xc3,
    ];
    /// The same, and mov %r8,%r13
    const FIVE_ARGUMENTS: &[u8] = &[
        0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xfb, 0x48, 0x8b, 0x02, 0x49, 0x89, 0xf6, 0x49, 0x89,
        0xcc, 0x4d, 0x89, 0xc5, 0x5d, 0xc3,
    ];
    /// The message is judged first: push %rbp; mov %rdi,%rax; mov (%rdx),%rcx; jmp *%rcx
    const BEHIND_A_TABLE: &[u8] = &[0x55, 0x48, 0x89, 0xf8, 0x48, 0x8b, 0x0a, 0xff, 0xe1];
    /// And with another object: push %rbp; mov %rdi,%rsi; mov (%rdx),%rcx; jmp *%rcx
    const WITHOUT_ITSELF: &[u8] = &[0x55, 0x48, 0x89, 0xfe, 0x48, 0x8b, 0x0a, 0xff, 0xe1];
    const ADDS_17: &[u8] = &[0x48, 0x8d, 0x46, 0x11, 0xc3];
    const ADDS_24: &[u8] = &[0x48, 0x8d, 0x46, 0x18, 0xc3];
    const ADDS_16: &[u8] = &[0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x46, 0x10, 0x5d, 0xc3];

    /// A file to be: strings, functions, and tables of pointers.
    struct Program {
        strings: Vec<&'static str>,
        functions: Vec<&'static [u8]>,
        words: Vec<Word>,
    }

    #[derive(Clone, Copy)]
    enum Word {
        Number(u64),
        Function(u64),
        /// The string with this number, from this character on.
        Path(usize, u64),
    }
    use Word::{Function as Code, Number, Path};

    /// Functions `first` to `first + 2` are decrypt, encrypt and encrypted_payload_len.
    fn pair(first: u64, path: usize, length: u64) -> Vec<Word> {
        vec![
            Number(0),
            Number(560),
            Number(16),
            Code(first),
            Path(path, 0),
            Number(length),
            Number(89 << 32 | 175),
            Code(9),
            Number(48),
            Number(8),
            Code(first + 1),
            Code(first + 2),
        ]
    }

    fn program() -> Program {
        let mut words = vec![Number(7), Code(3)];
        words.extend(pair(0, 0, PATH.len() as u64));
        words.extend(pair(3, 1, PATH_12.len() as u64));
        words.extend(pair(6, 1, PATH_12.len() as u64));
        Program {
            strings: vec![PATH, PATH_12],
            functions: vec![
                METHOD_CODE,
                METHOD_CODE,
                ADDS_17,
                METHOD_CODE,
                METHOD_CODE,
                ADDS_24,
                METHOD_CODE,
                METHOD_CODE,
                ADDS_16,
                ADDS_17,
            ],
            words,
        }
    }

    /// Where the words of the first pair begin in [`program`].
    const FIRST: usize = 2;

    impl Program {
        /// With the pointers in their places, or as `relocated` entries of a table of which the places know nothing.
        fn image(&self, relocated: bool) -> Vec<u8> {
            let mut strings = Vec::new();
            let mut at = Vec::new();
            for string in &self.strings {
                at.push(BASE + 0x200 + strings.len() as u64);
                strings.extend_from_slice(string.as_bytes());
            }
            let (mut words, mut table) = (Vec::new(), Vec::new());
            for (index, word) in self.words.iter().enumerate() {
                let pointer = match *word {
                    Number(number) => {
                        words.extend_from_slice(&number.to_le_bytes());
                        continue;
                    }
                    Code(index) => BASE + CODE + index * ROOM,
                    Path(index, from) => at[index] + from,
                };
                let kept = if relocated { 0 } else { pointer };
                words.extend_from_slice(&kept.to_le_bytes());
                for word in [BASE + DATA + index as u64 * 8, 8, pointer] {
                    table.extend_from_slice(&word.to_le_bytes());
                }
            }
            let relocations = DATA + words.len() as u64;
            let dynamic = relocations + table.len() as u64;
            let end = dynamic + 3 * 16;

            let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            for half in [3_u16, 62, 1, 0] {
                file.extend_from_slice(&half.to_le_bytes());
            }
            for word in [0, 64, 0_u64] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            for half in [0_u16, 0, 64, 56, 4, 64, 0, 0] {
                file.extend_from_slice(&half.to_le_bytes());
            }
            let dynamic_kind = if relocated { 2 } else { 0 };
            for (kind, flags, offset, size) in [
                (1_u32, 4_u32, 0, CODE),
                (1, 5, CODE, DATA - CODE),
                (1, 6, DATA, end - DATA),
                (dynamic_kind, 6, dynamic, 3 * 16),
            ] {
                file.extend_from_slice(&kind.to_le_bytes());
                file.extend_from_slice(&flags.to_le_bytes());
                for word in [offset, BASE + offset, BASE + offset, size, size, 8] {
                    file.extend_from_slice(&word.to_le_bytes());
                }
            }
            file.resize(0x200, 0);
            file.extend_from_slice(&strings);
            for (index, function) in self.functions.iter().enumerate() {
                file.resize((CODE + index as u64 * ROOM) as usize, 0xcc);
                file.extend_from_slice(function);
            }
            file.resize(DATA as usize, 0xcc);
            file.extend_from_slice(&words);
            file.extend_from_slice(&table);
            for word in [7, BASE + relocations, 8, table.len() as u64, 0, 0] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            file
        }
    }

    #[track_caller]
    fn found(program: &Program) -> Found {
        let in_place = locate(&program.image(false)).unwrap();
        assert_eq!(locate(&program.image(true)).unwrap(), in_place);
        in_place
    }

    #[track_caller]
    fn refused(program: &Program, sign: &str) {
        for relocated in [false, true] {
            let why = locate(&program.image(relocated)).unwrap_err().to_string();
            assert!(why.contains(sign), "{why}");
        }
    }

    #[test]
    fn each_pair_is_found() {
        let found = found(&program());
        assert_eq!((found.library, found.partly), ("rustls", None));
        assert_eq!(found.version.as_deref(), Some("0.23.46"));
        let points: Vec<_> = found
            .points
            .iter()
            .map(|point| {
                assert_eq!(point.instruction, Instruction::Emulated);
                ((point.offset - CODE) / ROOM, point.shape, point.direction)
            })
            .collect();
        let decrypt = |function| (function, Shape::Decrypted, Direction::Received);
        let encrypt = |function| (function, Shape::Encrypted, Direction::Sent);
        assert_eq!(
            points,
            [
                decrypt(0),
                encrypt(1),
                decrypt(3),
                encrypt(4),
                decrypt(6),
                encrypt(7)
            ]
        );
    }

    /// Each of these makes the first pair something else. The others are there, and it is said that one is not.
    #[test]
    fn each_sign_refutes() {
        let cases: [(usize, Word); 13] = [
            // The decrypter's table: drop, size, alignment, method.
            (0, Number(BASE + DATA)),
            (1, Number(0)),
            (1, Number(572)),
            (1, Number(8192)),
            (2, Number(24)),
            (3, Path(0, 0)),
            // The path: from its middle on, too long, another file's.
            (4, Path(0, 3)),
            (5, Number(PATH.len() as u64 + 1)),
            (4, Path(1, 0)),
            // The encrypter's table: drop, method; a number for TLS 1.2 in the file for 1.3, and no such function.
            (7, Path(0, 1)),
            (10, Number(1)),
            (11, Code(5)),
            (11, Code(0)),
        ];
        for (index, word) in cases {
            let mut program = program();
            program.words[FIRST + index] = word;
            let found = found(&program);
            assert_eq!(found.points.len(), 4, "word {index}");
            let partly = found.partly.unwrap();
            assert!(partly.contains("some of its ciphers"), "{partly}");
        }
    }

    /// The same with the encrypter first.
    fn reversed(first: u64, path: usize, length: u64) -> Vec<Word> {
        let words = pair(first, path, length);
        [&words[7..], &words[4..7], &words[..4]].concat()
    }

    /// Both pairs of TLS 1.2 follow each other with a place between them, as all tables have it: the first one's
    /// decrypter and the second one's encrypter are no pair.
    #[test]
    fn the_encrypter_may_be_first() {
        let place = &pair(0, 1, PATH_12.len() as u64)[4..7];
        let mut words = vec![Number(7), Code(3)];
        words.extend(reversed(0, 0, PATH.len() as u64));
        words.extend(reversed(3, 1, PATH_12.len() as u64));
        words.extend(place);
        words.extend(reversed(6, 1, PATH_12.len() as u64));
        let mut program = program();
        program.words = words;
        let whole = found(&program);
        let functions = whole
            .points
            .iter()
            .map(|point| (point.offset - CODE) / ROOM);
        assert_eq!(functions.collect::<Vec<_>>(), [0, 1, 3, 4, 6, 7]);
        assert_eq!(whole.partly, None);

        // Without the second pair's decrypter both orders give one, and none can be believed.
        program.words.truncate(program.words.len() - 4);
        let rest = found(&program);
        assert_eq!(rest.points.len(), 2);
        assert!(rest.partly.is_some());
    }

    /// A path with a NUL behind it, which its length counts or not; nothing else is counted.
    #[test]
    fn a_nul_may_be_counted() {
        const WITH_NUL: &str = "/home/me/registry/rustls-0.23.46/src/crypto/ring/tls13.rs\0";
        let length = PATH.len() as u64;
        for (length, pairs) in [(length, 3), (length + 1, 3), (length + 2, 2)] {
            let mut program = program();
            program.strings[0] = WITH_NUL;
            program.words[FIRST + 5] = Number(length);
            assert_eq!(found(&program).points.len(), 2 * pairs, "{length}");
        }
    }

    #[test]
    fn a_name_alone_is_no_library() {
        let mut other = program();
        other.strings = vec!["/rustls-0.", "/rustls-0.23", "/rustls-0.23.46.tar"];
        assert_eq!(locate(&other.image(true)), Err(Refusal::NoLibrary));
    }

    /// uv 0.13.9, which is optimised for size in part.
    #[test]
    fn an_object_may_be_used_behind_a_table() {
        let mut program = program();
        let all = found(&program).points.len();
        program.functions[1] = BEHIND_A_TABLE;
        assert_eq!(found(&program).points.len(), all);
        program.functions[1] = WITHOUT_ITSELF;
        refused(&program, "other arguments");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let mut other = program();
        other.functions[1] = FIVE_ARGUMENTS;
        refused(&other, "other arguments");

        let mut other = program();
        other.words[FIRST + 10] = Code(0);
        refused(&other, "encrypts and decrypts");

        let mut other = program();
        other.words.truncate(FIRST + 6);
        refused(&other, "not beside its decrypters");

        let mut other = program();
        other.strings[1] = "/home/me/registry/rustls-0.23.45/src/crypto/ring/tls12.rs";
        refused(&other, "two versions");

        let mut other = program();
        other.strings = vec![
            "/home/me/registry/rustls-0.22.46/src/crypto/ring/tls13.rs",
            "/home/me/registry/rustls-0.24.10/src/crypto/ring/tls12.rs",
        ];
        refused(&other, "of a known rustls");

        let mut other = program();
        other.strings[0] = "/home/me/registry/rustls-0.23.46/src/crypto/mine/tls13.rs";
        other.strings[1] = "/home/me/registry/rustls-0.23.46/src/crypto/mine/tls12.rs";
        refused(&other, "neither ring nor aws-lc-rs");
    }

    #[test]
    fn an_older_one_is_not_forgotten() {
        let mut program = program();
        program.strings.push("/registry/rustls-0.21.12/src/conn.rs");
        let partly = found(&program).partly.unwrap();
        assert!(partly.contains("older rustls"), "{partly}");
    }

    #[test]
    fn who_only_uses_others_is_nothing() {
        let mut program = program();
        program.strings = vec![
            "/home/me/registry/tokio-rustls-0.26.4/src/client_server.rs",
            "/home/me/registry/ring-0.17.14/src/aead/overlapping_all.rs",
        ];
        for relocated in [false, true] {
            assert_eq!(locate(&program.image(relocated)), Err(Refusal::NoLibrary));
        }
    }

    #[test]
    fn no_flipped_bits_panic() {
        let files = [program().image(false), program().image(true)];
        // Whatever is proposed lies in code, and the kernel takes it.
        flip_bits(&files, 5_000, |_, point| {
            assert!((CODE..DATA).contains(&point.offset));
        });
    }
}
