//! BoringSSL inside a program without its symbols, found by the errors that its functions report.
//!
//! Each error is a call of `ERR_put_error(ERR_LIB_SSL, 0, reason, ".../ssl/ssl_lib.cc", line)`: which reasons a
//! function can report says which one it is, and the lines have the order of the source. Where the program was
//! optimised as a whole, the unused second argument is gone, and the others have moved up by one register.
//!
//! `SSL_write` reports four errors that no other function has together. `SSL_read` and `SSL_peek` report one, and
//! both call `ssl_read_impl`, which reports two; only the read moves the pending bytes forward. In the source it
//! calls the peek; where the compiler has left it so, it reports nothing itself and is the only caller that does
//! that. There is no inner function that has the buffer as an argument, so these two functions are the points.

use agent_ebpf::{Direction, Shape};
use iced_x86::Register;

use super::{
    Found, Refusal,
    carrier::{Carrier, Entry},
    elf::Elf,
    function::Function,
    means,
};

/// The end of the path that `__FILE__` gave.
const SOURCE: &[u8] = b"/ssl/ssl_lib.cc";
const LIBRARY: u64 = 16;
/// Reasons: ERR_R_SHOULD_NOT_HAVE_BEEN_CALLED (with QUIC), SSL_R_UNINITIALIZED, SSL_R_SSL_HANDSHAKE_FAILURE,
/// SSL_R_BAD_LENGTH.
const NOT_CALLED: u64 = 66;
const UNINITIALIZED: u64 = 226;
const HANDSHAKE_FAILURE: u64 = 215;
const BAD_LENGTH: u64 = 111;

const READ: Carrier = ("SSL_read", Direction::Received, Shape::Returned);
const WRITE: Carrier = ("SSL_write", Direction::Sent, Shape::Returned);

/// A function that reports errors.
struct Reporter {
    function: Function,
    errors: Vec<Report>,
}

struct Report {
    reason: u64,
    line: u64,
}

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let sources = elf.strings_ending(SOURCE)?;
    if sources.is_empty() {
        return Err(Refusal::NoLibrary);
    }
    let loads = elf.loads(&sources)?;
    let mut libraries = Vec::new();
    for source in sources {
        let own = loads.iter().filter(|(_, target)| *target == source);
        let reporters = reporters(elf, source, own.map(|(address, _)| *address))?;
        if !reporters.is_empty() {
            libraries.push(reporters);
        }
    }
    let reporters = match (libraries.pop(), libraries.pop()) {
        // Somebody else's use of the name.
        (None, _) => return Err(Refusal::NoLibrary),
        (Some(reporters), None) => reporters,
        (Some(_), Some(_)) => return Err(Refusal::Unsafe("it is there twice")),
    };

    let (read, write) = reads_and_writes(elf, reporters)?;
    Ok(Found {
        library: "BoringSSL",
        version: None,
        points: vec![read.point(elf)?, write.point(elf)?],
        others: Vec::new(),
        partly: None,
        located: means::ERRORS,
        on_trial: true,
    })
}

/// The functions that report errors of `source`, whose address is loaded at `loads`. Parts of functions that the
/// compiler has moved away are left out: nothing is known of where they belong.
fn reporters(
    elf: &Elf<'_>,
    source: u64,
    loads: impl Iterator<Item = u64>,
) -> Result<Vec<Reporter>, Refusal> {
    let mut reporters: Vec<Reporter> = Vec::new();
    for load in loads {
        let mut known = reporters.iter_mut();
        if let Some(reporter) = known.find(|reporter| reporter.function.load(load).is_some()) {
            let error = report(&reporter.function, load, source);
            reporter.errors.extend(error);
            continue;
        }
        let Some(function) = Function::around(elf, load)? else {
            continue;
        };
        if let Some(error) = report(&function, load, source) {
            reporters.push(Reporter {
                function,
                errors: vec![error],
            });
        }
    }
    Ok(reporters)
}

/// The error that is reported where `load` names the source.
fn report(function: &Function, load: u64, source: u64) -> Option<Report> {
    let (register, target) = function.load(load)?;
    let (reason, line) = match register {
        Register::RCX => (Register::RDX, Register::R8),
        Register::RDX => (Register::RSI, Register::RCX),
        _ => return None,
    };
    let is_ours = target == source && function.constant(load, Register::RDI) == Some(LIBRARY);
    is_ours.then_some(())?;
    Some(Report {
        reason: function.constant(load, reason)?,
        line: function.constant(load, line)?,
    })
}

impl Reporter {
    /// The line of the only report of `reason`.
    fn line(&self, reason: u64) -> Option<u64> {
        let mut lines = self.errors.iter().filter(|error| error.reason == reason);
        match (lines.next(), lines.next()) {
            (Some(error), None) => Some(error.line),
            _ => None,
        }
    }

    fn reports(&self, reasons: &[u64]) -> bool {
        let mut own: Vec<_> = self.errors.iter().map(|error| error.reason).collect();
        let mut wanted = reasons.to_vec();
        own.sort_unstable();
        wanted.sort_unstable();
        own == wanted
    }

    /// `int f(SSL *ssl, void *buf, int num)`
    fn takes_a_buffer(&self) -> bool {
        let takes = |register| self.function.takes(register);
        let [buffer, size, fourth, fifth] =
            [Register::RSI, Register::RDX, Register::RCX, Register::R8].map(takes);
        buffer && size && !fourth && !fifth
    }
}

/// Functions that call this one and then move a span forward.
fn consumers(elf: &Elf<'_>, peek: u64) -> Result<Vec<Entry>, Refusal> {
    let mut consumers: Vec<Entry> = Vec::new();
    for reference in elf.references(peek)? {
        let mut known = consumers.iter();
        if known.any(|entry| entry.function.contains(reference)) {
            continue;
        }
        let Some(function) = Function::around(elf, reference - 1)? else {
            continue;
        };
        let entry = Entry::of(elf, READ, function)?;
        if entry.leads_to_once(peek) && entry.function.consumes() {
            consumers.push(entry);
        }
    }
    Ok(consumers)
}

fn reads_and_writes(elf: &Elf<'_>, reporters: Vec<Reporter>) -> Result<(Entry, Entry), Refusal> {
    // ssl_read_impl, and where its last error is.
    let inner: Vec<(u64, u64)> = reporters
        .iter()
        .filter(|reporter| reporter.line(NOT_CALLED).is_none())
        .filter_map(|reporter| {
            let first = reporter.line(UNINITIALIZED)?;
            let last = reporter.line(HANDSHAKE_FAILURE)?;
            (first < last).then_some((reporter.function.address, last))
        })
        .collect();

    let mut writes = Vec::new();
    let (mut reads, mut peeks) = (Vec::new(), Vec::new());
    for reporter in reporters {
        let Some(line) = reporter.line(NOT_CALLED) else {
            continue;
        };
        if reporter.reports(&[NOT_CALLED, UNINITIALIZED, HANDSHAKE_FAILURE, BAD_LENGTH]) {
            writes.push((line, reporter));
            continue;
        }
        if !reporter.reports(&[NOT_CALLED]) || !reporter.takes_a_buffer() {
            continue;
        }
        let entry = Entry::of(elf, READ, reporter.function)?;
        let mut inner = inner.iter();
        if !inner.any(|(address, above)| *above < line && entry.leads_to_once(*address)) {
            continue;
        }
        if entry.function.consumes() {
            reads.push((line, entry));
        } else {
            peeks.push((line, entry.function.address));
        }
    }
    if let ([], [(line, peek)]) = (&reads[..], &peeks[..]) {
        let callers = consumers(elf, *peek)?;
        reads.extend(callers.into_iter().map(|read| (*line, read)));
    }

    let [(write_line, write)] = <[_; 1]>::try_from(writes)
        .map_err(|_| Refusal::Unsafe("not one function reports the errors of SSL_write"))?;
    let [(read_line, read)] = <[_; 1]>::try_from(reads)
        .map_err(|_| Refusal::Unsafe("not one function does what SSL_read does"))?;
    let is_first = write.errors.iter().all(|error| write_line <= error.line);
    if !is_first || read_line >= write_line {
        return Err(Refusal::Unsafe(
            "the lines of its errors have another order",
        ));
    }
    if !write.takes_a_buffer() {
        return Err(Refusal::Unsafe("its SSL_write takes other arguments"));
    }
    let write = Entry::of(elf, WRITE, write.function)?;
    if read.leads_into(&[write.function.address]) || write.leads_into(&[read.function.address]) {
        return Err(Refusal::Unsafe("its functions lead into each other"));
    }
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Instruction,
            image::{
                Piece::{self, Bytes, Call, Text},
                SOURCE, image, offset_of, without_unwind,
            },
            locate,
            tests::flip_bits,
        },
        *,
    };

    type Functions = Vec<(&'static str, &'static [Piece])>;

    /// push %rbp; mov %rsp,%rbp; mov %rsi,%r14; mov %edx,%ebx
    const ENTRY: Piece = Bytes(&[0x55, 0x48, 0x89, 0xe5, 0x49, 0x89, 0xf6, 0x89, 0xd3]);
    const NO_BUFFER: Piece = Bytes(&[0x55, 0x48, 0x89, 0xe5, 0x89, 0xd3]);
    const PLAIN: Piece = Bytes(&[0x55, 0x48, 0x89, 0xe5]);
    /// pop %rbp; ret
    const EXIT: Piece = Bytes(&[0x5d, 0xc3]);
    /// mov 0x88(%rax),%rcx; add %rbx,0x80(%rax); mov %rcx,0x88(%rax)
    const CONSUME: Piece = Bytes(&[
        0x48, 0x8b, 0x88, 0x88, 0, 0, 0, 0x48, 0x01, 0x98, 0x80, 0, 0, 0, 0x48, 0x89, 0x88, 0x88,
        0, 0, 0,
    ]);
    const FILE: Piece = Text(&[0x48, 0x8d, 0x0d], SOURCE);
    const ERROR: Piece = Call(".error");

    /// mov $16,%edi; xor %esi,%esi; mov reason,%edx; mov line,%r8d
    macro_rules! arguments {
        ($reason:expr, $line:expr) => {
            arguments!(16, $reason, $line)
        };
        ($library:expr, $reason:expr, $line:expr) => {
            Bytes(&[
                0xbf, $library, 0, 0, 0, 0x31, 0xf6, 0xba, $reason, 0, 0, 0, 0x41, 0xb8, $line, 0,
                0, 0,
            ])
        };
    }
    const WRITE: &[Piece] = &[
        ENTRY,
        FILE,
        arguments!(66, 60),
        ERROR,
        arguments!(226, 61),
        FILE,
        ERROR,
        FILE,
        arguments!(215, 70),
        ERROR,
        FILE,
        arguments!(111, 72),
        ERROR,
        EXIT,
    ];
    const READ: &[Piece] = &[
        ENTRY,
        FILE,
        arguments!(66, 50),
        ERROR,
        Call(".impl"),
        CONSUME,
        EXIT,
    ];
    const PEEK: &[Piece] = &[ENTRY, FILE, arguments!(66, 50), ERROR, Call(".impl"), EXIT];

    fn functions() -> Functions {
        vec![
            (".error", &[PLAIN, EXIT]),
            (
                ".impl",
                &[
                    PLAIN,
                    FILE,
                    arguments!(226, 30),
                    ERROR,
                    FILE,
                    arguments!(215, 40),
                    ERROR,
                    EXIT,
                ],
            ),
            (".read", READ),
            (".write", WRITE),
            // As SSL_do_handshake.
            (
                ".other",
                &[
                    PLAIN,
                    FILE,
                    arguments!(66, 20),
                    ERROR,
                    FILE,
                    arguments!(182, 21),
                    ERROR,
                    EXIT,
                ],
            ),
            (".peek", PEEK),
        ]
    }

    #[track_caller]
    fn check(functions: &Functions, read: u64, write: u64) {
        for file in [image(functions), without_unwind(image(functions))] {
            let found = locate(&file).unwrap();
            assert_eq!((found.library, found.partly), ("BoringSSL", None));
            let points: Vec<_> = found
                .points
                .iter()
                .map(|point| {
                    assert_eq!(
                        (point.shape, point.instruction),
                        (Shape::Returned, Instruction::Emulated)
                    );
                    (point.function, point.offset)
                })
                .collect();
            assert_eq!(
                points,
                [
                    ("SSL_read", offset_of(read)),
                    ("SSL_write", offset_of(write))
                ]
            );
        }
    }

    #[track_caller]
    fn refused(functions: &Functions, sign: &str) {
        for file in [image(functions), without_unwind(image(functions))] {
            let why = locate(&file).unwrap_err().to_string();
            assert!(why.contains(sign), "{why}");
        }
    }

    #[test]
    fn a_function_is_the_errors_that_it_reports() {
        check(&functions(), 2, 3);
        let mut without_peek = functions();
        without_peek.pop();
        check(&without_peek, 2, 3);
    }

    #[test]
    fn a_read_may_call_the_peek() {
        let mut functions = functions();
        functions[2].1 = &[ENTRY, Call(".peek"), CONSUME, EXIT];
        check(&functions, 2, 3);
        // Nobody but the peek itself is left.
        functions[2].1 = &[ENTRY, Call(".peek"), EXIT];
        refused(&functions, "what SSL_read does");
    }

    #[test]
    fn each_sign_refutes() {
        let cases: &[(usize, &'static [Piece], &str)] = &[
            // Another library's error, and one that is not SSL_write's.
            (
                3,
                &[
                    ENTRY,
                    FILE,
                    arguments!(66, 60),
                    ERROR,
                    FILE,
                    arguments!(17, 226, 61),
                    ERROR,
                    FILE,
                    arguments!(215, 70),
                    ERROR,
                    FILE,
                    arguments!(111, 72),
                    ERROR,
                    EXIT,
                ],
                "errors of SSL_write",
            ),
            (
                3,
                &[
                    ENTRY,
                    FILE,
                    arguments!(66, 60),
                    ERROR,
                    FILE,
                    arguments!(227, 61),
                    ERROR,
                    FILE,
                    arguments!(215, 70),
                    ERROR,
                    FILE,
                    arguments!(111, 72),
                    ERROR,
                    EXIT,
                ],
                "errors of SSL_write",
            ),
            // Two of them.
            (4, WRITE, "errors of SSL_write"),
            (4, READ, "what SSL_read does"),
            // Above the read in the source; its own lines out of order.
            (
                3,
                &[
                    ENTRY,
                    FILE,
                    arguments!(66, 45),
                    ERROR,
                    FILE,
                    arguments!(226, 61),
                    ERROR,
                    FILE,
                    arguments!(215, 70),
                    ERROR,
                    FILE,
                    arguments!(111, 72),
                    ERROR,
                    EXIT,
                ],
                "another order",
            ),
            (
                3,
                &[
                    ENTRY,
                    FILE,
                    arguments!(66, 62),
                    ERROR,
                    FILE,
                    arguments!(226, 61),
                    ERROR,
                    FILE,
                    arguments!(215, 70),
                    ERROR,
                    FILE,
                    arguments!(111, 72),
                    ERROR,
                    EXIT,
                ],
                "another order",
            ),
            // The inner function is below the read, or reports something else.
            (
                1,
                &[
                    PLAIN,
                    FILE,
                    arguments!(226, 30),
                    ERROR,
                    FILE,
                    arguments!(215, 55),
                    ERROR,
                    EXIT,
                ],
                "what SSL_read does",
            ),
            (
                1,
                &[
                    PLAIN,
                    FILE,
                    arguments!(226, 30),
                    ERROR,
                    FILE,
                    arguments!(216, 40),
                    ERROR,
                    EXIT,
                ],
                "what SSL_read does",
            ),
            // No buffer; the inner function is not called; called twice.
            (
                2,
                &[
                    NO_BUFFER,
                    FILE,
                    arguments!(66, 50),
                    ERROR,
                    Call(".impl"),
                    CONSUME,
                    EXIT,
                ],
                "what SSL_read does",
            ),
            (
                2,
                &[ENTRY, FILE, arguments!(66, 50), ERROR, CONSUME, EXIT],
                "what SSL_read does",
            ),
            (
                2,
                &[
                    ENTRY,
                    FILE,
                    arguments!(66, 50),
                    ERROR,
                    Call(".impl"),
                    Call(".impl"),
                    CONSUME,
                    EXIT,
                ],
                "what SSL_read does",
            ),
            (
                3,
                &[
                    NO_BUFFER,
                    FILE,
                    arguments!(66, 60),
                    ERROR,
                    FILE,
                    arguments!(226, 61),
                    ERROR,
                    FILE,
                    arguments!(215, 70),
                    ERROR,
                    FILE,
                    arguments!(111, 72),
                    ERROR,
                    EXIT,
                ],
                "other arguments",
            ),
        ];
        for (index, pieces, sign) in cases {
            let mut functions = functions();
            functions[*index].1 = pieces;
            refused(&functions, sign);
        }
    }

    /// As we do ourselves.
    #[test]
    fn who_only_knows_the_name_is_nothing() {
        let functions: Functions = vec![(".error", &[PLAIN, EXIT])];
        assert_eq!(locate(&image(&functions)), Err(Refusal::NoLibrary));
    }

    #[test]
    fn no_flipped_bits_panic() {
        let files = [image(&functions()), without_unwind(image(&functions()))];
        // Whatever is proposed begins a function of the image.
        flip_bits(&files, 5_000, |_, point| {
            assert!((point.function_offset - offset_of(0)).is_multiple_of(0x100));
        });
    }
}
