//! Go's `crypto/tls`, found by Go's own table of functions and proved by the code inside of them.
//!
//! A goroutine's stack moves, and its thread changes, so nothing of Go gets a return probe, ever. None is
//! needed. Inside of `Conn.Read` and `Conn.Write` there are calls that are given all that there is to know, under
//! the lock of their direction, so that they come in the order of the stream:
//!
//! - `Read` hands out what is decrypted by one call of `memmove`: to, from, how many. On the way round it, which
//!   is taken if both are one place, the same register as before it is the connection, and the same number is
//!   added to what was taken. So these two are in their registers at the call.
//! - `Write` gives the connection, the kind of record and the bytes to `writeRecordLocked`, which sends them all
//!   or fails for good. The bytes are taken there: afterwards nobody keeps the collector from using their place
//!   for something else.
//! - A connection begins where the wrapper of its handshake, which is called once, calls the handshake.
//!
//! Each is a direct call, which the kernel emulates.

use agent_ebpf::{Direction, Shape};
use iced_x86::{ConditionCode, FlowControl, Mnemonic, OpKind, Register};

use super::{
    Found, Instruction, Point, Refusal,
    elf::Elf,
    function::Function,
    instruction::under_probe,
    means,
    pclntab::{self, Go, Named},
};

const READ: &str = "crypto/tls.(*Conn).Read";
const WRITE: &str = "crypto/tls.(*Conn).Write";
const END: &str = "crypto/tls.(*Conn).Close";
const COPY: &str = "runtime.memmove";
const SEND: &str = "crypto/tls.(*Conn).writeRecordLocked";
/// The wrapper, and what it wraps. A program that only serves has no client.
const HANDSHAKES: [(&str, &str); 2] = [
    (
        "crypto/tls.(*Conn).clientHandshake-fm",
        "crypto/tls.(*Conn).clientHandshake",
    ),
    (
        "crypto/tls.(*Conn).serverHandshake-fm",
        "crypto/tls.(*Conn).serverHandshake",
    ),
];
/// The first method of a TCP connection as a `net.Conn`: who has this one is one.
const CLOSE: &str = "net.(*TCPConn).Close";
const DESTROY: &str = "internal/poll.(*FD).destroy";
const NAMES: [&str; 11] = [
    READ,
    WRITE,
    END,
    COPY,
    SEND,
    HANDSHAKES[0].0,
    HANDSHAKES[0].1,
    HANDSHAKES[1].0,
    HANDSHAKES[1].1,
    CLOSE,
    DESTROY,
];
/// Argument registers of Go's calling convention for amd64, as far as they are needed.
const ARGUMENTS: [Register; 6] = [
    Register::RAX,
    Register::RBX,
    Register::RCX,
    Register::RDI,
    Register::RSI,
    Register::R8,
];
/// A record's kind: application data.
const APPLICATION_DATA: u64 = 23;
/// Where the kernel side looks for a descriptor in `internal/poll.FD`.
const DESCRIPTOR: u64 = 16;

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let table = match pclntab::find(elf)? {
        Go::Nothing => return Err(Refusal::NoLibrary),
        Go::Unknown(ref bytes) if mentions(elf, bytes.clone())? => {
            return Err(Refusal::Unsafe(
                "this version of Go lays its functions out otherwise",
            ));
        }
        Go::Unknown(_) => return Err(Refusal::NoLibrary),
        Go::Table(table) => table,
    };
    let program = Program {
        elf,
        functions: table.functions(&NAMES)?,
    };
    if !program.has(READ) && !program.has(WRITE) {
        return Err(Refusal::NoLibrary);
    }

    let mut points = vec![program.read()?];
    points.extend(program.writes()?);
    let mut others = program.begins()?;
    others.extend(program.end()?);
    Ok(Found {
        library: "go",
        version: version(elf)?,
        points,
        others,
        partly: None,
        located: means::PCLNTAB,
        on_trial: false,
    })
}

struct Program<'a> {
    elf: &'a Elf<'a>,
    functions: Vec<Named>,
}

impl Program<'_> {
    fn has(&self, name: &str) -> bool {
        self.functions.iter().any(|known| known.name == name)
    }

    fn only(&self, name: &str) -> Result<&Named, Refusal> {
        let mut named = self.functions.iter().filter(|known| known.name == name);
        match (named.next(), named.next()) {
            (Some(named), None) => Ok(named),
            (None, _) => Err(Refusal::Unsafe("a function of crypto/tls is missing")),
            (Some(_), Some(_)) => Err(Refusal::Unsafe("two functions have the same name")),
        }
    }

    fn function(&self, name: &str) -> Result<Function, Refusal> {
        let range = self.only(name)?.range.clone();
        let function = Function::within(self.elf, range)?.filter(Function::is_consistent);
        function.ok_or(Refusal::Unsafe("a function of crypto/tls is no code"))
    }

    fn address(&self, name: &str) -> Result<u64, Refusal> {
        Ok(self.only(name)?.range.start)
    }

    fn read(&self) -> Result<Point, Refusal> {
        let function = self.function(READ)?;
        if !takes(&function, 4) {
            return Err(Refusal::Unsafe("its Read has other arguments"));
        }
        let calls = function.calls_of(self.address(COPY)?);
        let [call] = calls[..] else {
            return Err(Refusal::Unsafe("its Read does not copy exactly once"));
        };
        if !is_counted_copy(&function, call) {
            return Err(Refusal::Unsafe(
                "its Read does not count what it copies as expected",
            ));
        }
        self.point(READ, &function, call, Direction::Received, Shape::Passed)
    }

    /// The main call, and the one for the first byte alone, as TLS 1.0 asks for it.
    fn writes(&self) -> Result<Vec<Point>, Refusal> {
        let function = self.function(WRITE)?;
        if !takes(&function, 4) || !takes(&self.function(SEND)?, 5) {
            return Err(Refusal::Unsafe("its Write has other arguments"));
        }
        let calls = function.calls_of(self.address(SEND)?);
        if !matches!(calls.len(), 1 | 2) {
            return Err(Refusal::Unsafe("its Write sends at other places"));
        }
        let is_data = |call: &usize| {
            let address = function.instructions()[*call].ip();
            function.constant(address, Register::RBX) == Some(APPLICATION_DATA)
        };
        if !calls.iter().all(is_data) {
            return Err(Refusal::Unsafe("its Write sends other records than data"));
        }
        let points = calls.into_iter();
        points
            .map(|call| self.point(WRITE, &function, call, Direction::Sent, Shape::Passed))
            .collect()
    }

    /// Where a connection begins. Without, one at the address of a dead one would be taken for it.
    fn begins(&self) -> Result<Vec<Point>, Refusal> {
        const UNKNOWN: Refusal = Refusal::Unsafe("where its connections begin is unknown");
        let mut points = Vec::new();
        for (wrapper, handshake) in HANDSHAKES {
            if !self.has(wrapper) {
                continue;
            }
            let function = self.function(wrapper)?;
            let calls = function.calls_of(self.address(handshake)?);
            let [call] = calls[..] else {
                return Err(UNKNOWN);
            };
            points.push(self.point(wrapper, &function, call, Direction::Received, Shape::Begun)?);
        }
        match points.is_empty() {
            true => Err(UNKNOWN),
            false => Ok(points),
        }
    }

    /// Where a connection is closed: the branch that asks whether the stack is large enough, which all calls pass
    /// with the connection where it came. Twice if the stack grows, and programs close more than once: that is no
    /// harm. Without, a connection keeps its place until its address comes again.
    fn end(&self) -> Result<Option<Point>, Refusal> {
        if !self.has(END) {
            return Ok(None);
        }
        let function = self.function(END)?;
        let instructions = function.instructions();
        let Some(branch) = instructions
            .iter()
            .position(|instruction| instruction.flow_control() != FlowControl::Next)
        else {
            return Ok(None);
        };
        let keeps = |instruction: &iced_x86::Instruction| {
            matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Lea)
                && instruction.op0_register().full_register() != Register::RAX
        };
        let is_check = instructions[branch].flow_control() == FlowControl::ConditionalBranch
            && instructions[branch].condition_code() == ConditionCode::be;
        if !is_check || !instructions[..branch].iter().all(keeps) || !function.takes(Register::RAX)
        {
            return Ok(None);
        }
        match self.point(END, &function, branch, Direction::Received, Shape::Freed) {
            Err(Refusal::Unsafe(_)) => Ok(None),
            point => point.map(Some),
        }
    }

    fn point(
        &self,
        name: &'static str,
        function: &Function,
        call: usize,
        direction: Direction,
        shape: Shape,
    ) -> Result<Point, Refusal> {
        let address = function.instructions()[call].ip();
        let offset = function.offset + (address - function.address);
        let bytes = self.elf.read(offset, 16)?;
        let bytes: [u8; 16] = bytes.try_into().map_err(|_| Refusal::Truncated)?;
        if under_probe(&bytes) != Some(Instruction::Emulated) {
            return Err(Refusal::Unsafe(
                "the kernel does not emulate one of its calls",
            ));
        }
        let detail = match shape {
            Shape::Passed => self.close_from(address)?.unwrap_or(0),
            _ => 0,
        };
        Ok(Point {
            offset,
            function_offset: function.offset,
            // Its family says it.
            library: "",
            function: name,
            direction,
            shape,
            instruction: Instruction::Emulated,
            detail,
            bytes,
        })
    }

    /// How far behind `address` the function is that closes a TCP connection, if descriptors are where the kernel
    /// side looks for them: it finds the socket by what the connection is made of.
    fn close_from(&self, address: u64) -> Result<Option<u32>, Refusal> {
        if !self.has(CLOSE) || !self.has(DESTROY) {
            return Ok(None);
        }
        // A descriptor that is closed becomes -1.
        let destroy = self.function(DESTROY)?;
        let is_there = destroy.instructions().iter().any(|instruction| {
            instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_kind() == OpKind::Memory
                && instruction.memory_size().size() == 8
                && instruction.memory_displacement64() == DESCRIPTOR
                && instruction.memory_base() != Register::RSP
                && instruction.memory_index() == Register::None
                && instruction.try_immediate(1).ok() == Some(u64::MAX)
        });
        let distance = self.address(CLOSE)?.wrapping_sub(address).cast_signed();
        let distance = i32::try_from(distance).ok().filter(|_| is_there);
        Ok(distance.map(i32::cast_unsigned))
    }
}

/// Does the function have the first `count` registers as arguments, and not the next one?
fn takes(function: &Function, count: usize) -> bool {
    let all = ARGUMENTS[..count].iter();
    all.copied().all(|register| function.takes(register)) && !function.takes(ARGUMENTS[count])
}

/// Is this the call in `if to != from { memmove(to, from, n) }; connection.field += n`, with to, from and n where
/// arguments are, and the connection in rsi?
fn is_counted_copy(function: &Function, call: usize) -> bool {
    let instructions = function.instructions();
    let Some(branch) = instructions[..call]
        .iter()
        .rposition(|instruction| instruction.flow_control() != FlowControl::Next)
    else {
        return false;
    };
    let (skip, Some(compare)) = (&instructions[branch], branch.checked_sub(1)) else {
        return false;
    };
    let compare = &instructions[compare];
    let compares = [compare.op0_register(), compare.op1_register()];
    let is_skip = skip.condition_code() == ConditionCode::e
        && compare.mnemonic() == Mnemonic::Cmp
        && (compares == [Register::RAX, Register::RBX]
            || compares == [Register::RBX, Register::RAX]);
    // In between a number is put on the stack.
    let between = &instructions[branch + 1..call];
    let is_straight = between.iter().all(|instruction| {
        instruction.mnemonic() == Mnemonic::Nop
            || instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_kind() == OpKind::Memory
                && instruction.memory_base() == Register::RSP
    });
    let Some(behind) = function.at(skip.near_branch_target()) else {
        return false;
    };
    let count = &instructions[behind];
    let is_count = count.mnemonic() == Mnemonic::Add
        && count.op0_kind() == OpKind::Memory
        && count.memory_base() == Register::RSI
        && count.memory_index() == Register::None
        && count.op1_register() == Register::RCX;
    is_skip && is_straight && behind > call && is_count
}

/// Is there a name that begins like this?
fn mentions(elf: &Elf<'_>, bytes: std::ops::Range<u64>) -> Result<bool, Refusal> {
    let finder = memchr::memmem::Finder::new(READ);
    let mut is_there = false;
    elf.windows(bytes, READ.len(), |_, window| {
        is_there = finder.find(window).is_some();
        match is_there {
            true => std::ops::ControlFlow::Break(()),
            false => std::ops::ControlFlow::Continue(()),
        }
    })?;
    Ok(is_there)
}

/// `1.24.4`, as the linker wrote it down (`debug/buildinfo`).
fn version(elf: &Elf<'_>) -> Result<Option<String>, Refusal> {
    const MAGIC: &[u8] = b"\xff Go buildinf:";
    /// Where the flags are, and what they say: the version follows, instead of where it is.
    const FLAGS: usize = 15;
    const INLINE: u8 = 2;
    const TEXT: usize = 32;
    const MAX: usize = 64;
    let Some(section) = elf.section(&[".go.buildinfo"])? else {
        return Ok(None);
    };
    let bytes = elf.read(
        section.offset,
        section.size.min((TEXT + MAX) as u64) as usize,
    )?;
    let is_inline =
        bytes.starts_with(MAGIC) && bytes.get(FLAGS).is_some_and(|flags| flags & INLINE != 0);
    let text = bytes.get(TEXT..).and_then(|rest| {
        let (length, rest) = rest.split_first()?;
        rest.get(..usize::from(*length))?.strip_prefix(b"go")
    });
    let Some(text) = text.filter(|_| is_inline) else {
        return Ok(None);
    };
    // "1.24.4 X:boringcrypto"
    let number = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_number = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+".contains(byte);
    let number = number.iter().all(is_number).then_some(number);
    Ok(number.and_then(|number| String::from_utf8(number.to_vec()).ok()))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            image::{
                Piece::{self, Bytes, Call},
                go_image, offset_of,
            },
            locate,
            tests::flip_bits,
        },
        *,
    };

    type Functions = Vec<(&'static str, &'static [Piece])>;

    /// Arguments go to the stack: four, and a fifth.
    const FOUR: Piece = Bytes(&[
        0x48, 0x89, 0x44, 0x24, 0x08, 0x48, 0x89, 0x5c, 0x24, 0x10, 0x48, 0x89, 0x4c, 0x24, 0x18,
        0x48, 0x89, 0x7c, 0x24, 0x20,
    ]);
    const FIFTH: Piece = Bytes(&[0x48, 0x89, 0x74, 0x24, 0x28]);
    /// mov 8(%rsp),%rsi; cmp %rbx,%rax; je behind the call; mov %rcx,0x28(%rsp)
    const SKIP: Piece = Bytes(&[
        0x48, 0x8b, 0x74, 0x24, 0x08, 0x48, 0x39, 0xd8, 0x74, 0x14, 0x48, 0x89, 0x4c, 0x24, 0x28,
    ]);
    /// mov 0x28(%rsp),%rcx; mov 8(%rsp),%rsi; add %rcx,0x2f0(%rsi)
    const COUNT: Piece = Bytes(&[
        0x48, 0x8b, 0x4c, 0x24, 0x28, 0x48, 0x8b, 0x74, 0x24, 0x08, 0x48, 0x01, 0x8e, 0xf0, 0x02,
        0, 0,
    ]);
    /// mov $23,%ebx
    const DATA: Piece = Bytes(&[0xbb, 23, 0, 0, 0]);
    const RET: Piece = Bytes(&[0xc3]);
    const COPIES: Piece = Call(".runtime.memmove");
    const SENDS: Piece = Call(".crypto/tls.(*Conn).writeRecordLocked");

    /// Names with a dot before them have no symbol.
    fn functions() -> Functions {
        vec![
            (".runtime.memmove", &[RET]),
            (
                ".crypto/tls.(*Conn).Read",
                &[FOUR, SKIP, COPIES, COUNT, RET],
            ),
            (".crypto/tls.(*Conn).writeRecordLocked", &[FOUR, FIFTH, RET]),
            (
                ".crypto/tls.(*Conn).Write",
                &[FOUR, DATA, SENDS, DATA, SENDS, RET],
            ),
            (
                ".crypto/tls.(*Conn).serverHandshake-fm",
                &[Call(".crypto/tls.(*Conn).serverHandshake"), RET],
            ),
            (".crypto/tls.(*Conn).serverHandshake", &[RET]),
            (".net.(*TCPConn).Close", &[RET]),
            // cmp 0x10(%r14),%rsp; jbe to the end; mov 0x10(%rax),%ecx; ret
            (
                ".crypto/tls.(*Conn).Close",
                &[Bytes(&[
                    0x49, 0x3b, 0x66, 0x10, 0x76, 0x04, 0x8b, 0x48, 0x10, 0x90, 0xc3,
                ])],
            ),
            // movq $-1,0x10(%rcx)
            (
                ".internal/poll.(*FD).destroy",
                &[
                    Bytes(&[0x48, 0xc7, 0x41, 0x10, 0xff, 0xff, 0xff, 0xff]),
                    RET,
                ],
            ),
        ]
    }

    fn replaced(name: &str, pieces: &'static [Piece]) -> Functions {
        let mut functions = functions();
        let mut known = functions.iter_mut();
        known.find(|(known, _)| &known[1..] == name).unwrap().1 = pieces;
        functions
    }

    fn without(name: &str) -> Functions {
        let mut functions = functions();
        functions.retain(|(known, _)| &known[1..] != name);
        functions
    }

    fn found(functions: &Functions) -> Result<Found, Refusal> {
        locate(&go_image(functions, "go1.24.4"))
    }

    #[track_caller]
    fn refused(functions: &Functions, sign: &str) {
        let why = found(functions).unwrap_err().to_string();
        assert!(why.contains(sign), "{why}");
    }

    #[test]
    fn the_calls_inside() {
        let found = found(&functions()).unwrap();
        assert_eq!(
            (found.library, found.version.as_deref()),
            ("go", Some("1.24.4"))
        );
        let points = found.points.iter().chain(&found.others);
        let points: Vec<_> = points
            .map(|point| (point.offset, point.direction, point.shape, point.detail))
            .collect();
        // From each call to the function that closes.
        let from = |function: u64, at: u64| (offset_of(6) - offset_of(function) - at) as u32;
        use {Direction::*, Shape::*};
        assert_eq!(
            points,
            [
                (offset_of(1) + 35, Received, Passed, from(1, 35)),
                (offset_of(3) + 25, Sent, Passed, from(3, 25)),
                (offset_of(3) + 35, Sent, Passed, from(3, 35)),
                (offset_of(4), Received, Begun, 0),
                (offset_of(7) + 4, Received, Freed, 0),
            ]
        );
        let calls = found.points.iter().chain(&found.others[..1]);
        for point in calls {
            assert_eq!(point.bytes[0], 0xe8);
        }
    }

    /// Without the socket, with everything else.
    #[test]
    fn a_descriptor_elsewhere() {
        let elsewhere: &[Piece] = &[
            Bytes(&[0x48, 0xc7, 0x41, 0x18, 0xff, 0xff, 0xff, 0xff]),
            RET,
        ];
        for functions in [
            replaced(DESTROY, elsewhere),
            without(DESTROY),
            without(CLOSE),
        ] {
            let found = found(&functions).unwrap();
            assert_eq!(found.points.len(), 3);
            assert!(found.points.iter().all(|point| point.detail == 0));
        }
    }

    /// Without the end, with everything else: no check of the stack, or the connection is changed before it.
    #[test]
    fn an_end_elsewhere() {
        for functions in [
            without(END),
            replaced(END, &[Bytes(&[0x8b, 0x48, 0x10]), RET]),
            replaced(
                END,
                &[Bytes(&[
                    0x48, 0x8b, 0x00, 0x76, 0x04, 0x8b, 0x48, 0x10, 0x90, 0xc3,
                ])],
            ),
        ] {
            let found = found(&functions).unwrap();
            assert_eq!((found.points.len(), found.others.len()), (3, 1));
        }
    }

    #[test]
    fn each_sign_refutes() {
        refused(&without(READ), "missing");
        let mut without_copy = replaced(READ, &[FOUR, RET]);
        without_copy.remove(0);
        refused(&without_copy, "missing");
        let mut twice = functions();
        twice.push((".crypto/tls.(*Conn).Write", &[RET]));
        refused(&twice, "the same name");
        // Other arguments.
        refused(
            &replaced(READ, &[SKIP, COPIES, COUNT, RET]),
            "other arguments",
        );
        refused(
            &replaced(READ, &[FOUR, FIFTH, SKIP, COPIES, COUNT, RET]),
            "other arguments",
        );
        refused(&replaced(SEND, &[FOUR, RET]), "other arguments");
        // No copy, two of them, one that nobody counts.
        refused(&replaced(READ, &[FOUR, RET]), "exactly once");
        refused(
            &replaced(READ, &[FOUR, SKIP, COPIES, COUNT, COPIES, RET]),
            "exactly once",
        );
        refused(&replaced(READ, &[FOUR, COPIES, COUNT, RET]), "count");
        // The connection in rdx; another comparison; another branch; n is changed before the call.
        let cases: [(&[u8], &[u8]); 4] = [
            (&[0x01, 0x8e], &[0x01, 0x8a]),
            (&[0x48, 0x39, 0xd8], &[0x48, 0x39, 0xc8]),
            (&[0x74, 0x14], &[0x75, 0x14]),
            (
                &[0x48, 0x89, 0x4c, 0x24, 0x28, 0xe8],
                &[0x48, 0x8b, 0x4c, 0x24, 0x28, 0xe8],
            ),
        ];
        for (from, to) in cases {
            let mut file = go_image(&functions(), "go1.24.4");
            let code = offset_of(1) as usize..offset_of(2) as usize;
            let at = memchr::memmem::find(&file[code.clone()], from).unwrap() + code.start;
            file[at..at + to.len()].copy_from_slice(to);
            let why = locate(&file).unwrap_err().to_string();
            assert!(why.contains("count"), "{why}");
        }
        // Another kind of record, or an unknown one; a jump into an instruction.
        refused(
            &replaced(WRITE, &[FOUR, Bytes(&[0xbb, 22, 0, 0, 0]), SENDS, RET]),
            "other records",
        );
        refused(&replaced(WRITE, &[FOUR, SENDS, RET]), "other records");
        refused(&replaced(WRITE, &[FOUR, RET]), "other places");
        refused(
            &replaced(WRITE, &[FOUR, DATA, SENDS, Bytes(&[0xeb, 0xfb]), RET]),
            "no code",
        );
        refused(&replaced(HANDSHAKES[1].0, &[RET]), "begin");
        refused(&without(HANDSHAKES[1].0), "begin");
    }

    #[test]
    fn a_go_program_without_tls() {
        let functions: Functions = vec![(".runtime.memmove", &[RET])];
        assert_eq!(found(&functions), Err(Refusal::NoLibrary));
    }

    #[test]
    fn another_layout() {
        let unknown = |functions: &Functions| {
            let mut file = go_image(functions, "go1.99");
            let magic = memchr::memmem::find(&file, &[0xf1, 0xff, 0xff, 0xff]).unwrap();
            file[magic] = 0xf2;
            locate(&file)
        };
        let why = unknown(&functions()).unwrap_err().to_string();
        assert!(why.contains("version of Go"), "{why}");
        let plain: Functions = vec![(".runtime.memmove", &[RET])];
        assert_eq!(unknown(&plain), Err(Refusal::NoLibrary));
    }

    #[test]
    fn versions_are_words() {
        let version = |text: &str| locate(&go_image(&functions(), text)).unwrap().version;
        assert_eq!(version("go1.27.3 X:fips").as_deref(), Some("1.27.3"));
        assert_eq!(version("devel go1.25-abc"), None);
        assert_eq!(version("go1\u{1b}[2J"), None);
    }

    #[test]
    fn no_flipped_bits_panic() {
        let whole = go_image(&functions(), "go1.24.4");
        flip_bits(&[whole], 20_000, |file, point| {
            assert_eq!(file[point.offset as usize..][..16], point.bytes);
        });
    }
}
