//! The ABI between the kernel programs (`main.rs` beside this file) and the agent.
//!
//! Plain integers in native byte order, no behaviour. Records travel through one BPF ring buffer;
//! each begins with a [`Head`]. Counters and control words are arrays shared by `mmap`.
#![cfg_attr(target_arch = "bpf", no_std)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Default size of the ring buffer in bytes; a power of two and a multiple of the page size.
pub const RING_BYTES: u32 = 8 << 20;
/// Largest payload of one data record. A longer call becomes several records.
pub const RECORD_MAX: u64 = 64 << 10;
/// Full records per call. [`RECORD_MAX`] times this is the most that is copied of one call: 16 MiB.
/// The verifier of 5.10 walks the copy loop once per record, so the number is its limit, not ours.
pub const RECORDS_PER_CALL: u64 = 256;
/// Calls of one thread that can be open at once (TLS in TLS nests them).
pub const FRAMES: usize = 4;

/// Where a call's byte count is found at its return. Part of the attach cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Shape {
    /// `int f(handle, buf, int len)`: the return value, if positive.
    Returned = 0,
    /// `int f(handle, buf, size_t len, size_t *out)`: `*out`, if the return value is positive.
    OutFourth = 1,
    /// `int f(handle, buf, size_t len, uint64_t flags, size_t *out)`: `*out`, likewise.
    OutFifth = 2,
    /// `int f(handle, buf, int len, int flags)`: the return value, if positive, unless the flags say
    /// [`PEEK`]: then the bytes come again.
    Peekable = 3,
    /// `int SSL_do_handshake(handle)`: carries no plaintext.
    Handshake = 4,
    /// `long SSL_ctrl(handle, int command, long, void *)`: may say the server's name. No return.
    Control = 5,
    /// `int SSL_clear(handle)`: what it carried is over. No return.
    Cleared = 6,
    /// `ssize_t SSL_sendfile(handle, int fd, off_t, size_t, int)`: the return value, if positive, of bytes
    /// that were in no buffer.
    Sendfile = 7,
    /// `void SSL_free(handle)`: one owner less. Or Go's `Close`, if the detail is 0: the handle in Go's register may
    /// still be read. No return.
    Freed = 8,
    /// A call inside of Go's `Conn.Read` or `Conn.Write` that is given bytes and carries all of them; arguments
    /// are in Go's registers. No return.
    Passed = 9,
    /// The call inside of Go's that begins the connection of a handle. No return.
    Begun = 10,
    /// `SSL *SSL_new(…)`: carries no plaintext, returns a new handle.
    Created = 11,
    /// `int gnutls_record_uncork(handle, int wait)`: sends what the handle held back. Writes of the handle
    /// inside of it carry what was carried before.
    Flushed = 12,
    /// rustls: `encrypt(result, encrypter, message, number)`: the message's chunks. No return.
    Encrypted = 13,
    /// rustls: `decrypt(result, decrypter, message, number)`: what the result names, if it is one.
    Decrypted = 14,
    /// `void SSL_set_bio(handle, BIO *, BIO *)`: its bytes go another way from here on. No return.
    Rewired = 15,
}

/// `MSG_PEEK` of the sockets, and NSPR's `PR_MSG_PEEK`.
pub const PEEK: u64 = 2;

/// Which way plaintext goes, seen from the traced process. Part of the attach cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    Received = 0,
    Sent = 1,
}

/// Attach cookie: bit 0 is the [`Direction`], bits 1 to 4 are the [`Shape`], bit 5 is [`MOVED`], the bits from
/// [`POINT`] on are the number that user space gave to the probe point. The bits from [`DETAIL`] on are what the program
/// has to know besides: of a [`Shape::Freed`] where the object counts its owners, of a [`Shape::Passed`] how far
/// behind the point a TCP connection's first method is.
pub const fn cookie(point: u64, direction: Direction, shape: Shape) -> u64 {
    point << POINT | (shape as u64) << 1 | direction as u64
}

pub const POINT: u64 = 8;

pub const DETAIL: u64 = 32;
/// Tells two links of one point apart, while its probes move from one to the other.
pub const MOVED: u64 = 1 << 5;

/// Kinds of ring records ([`Head::kind`]).
pub mod kind {
    /// Plaintext: [`super::Data`], then `Head::len` bytes.
    pub const DATA: u16 = 1;
    /// Bytes of a stream that will not come: [`super::Gap`].
    pub const GAP: u16 = 2;
    /// A handle that means a new connection from here on: [`super::Opened`].
    pub const OPENED: u16 = 4;
    /// The two ends of a socket, once per socket: [`super::Socket`].
    pub const SOCKET: u16 = 3;
    /// A socket used outside every TLS call: [`super::Transfer`].
    pub const TRANSFER: u16 = 9;
    /// A TLS call that carried no plaintext and used no socket: [`super::Touch`].
    pub const TOUCH: u16 = 6;
    /// The first TLS call of a handle that carried no plaintext used one socket: [`super::Bound`].
    pub const BOUND: u16 = 16;
    /// A socket that was announced is gone: [`super::Closed`].
    pub const CLOSED: u16 = 7;
    /// The name of the server that a handle wants: [`super::Name`], then `Head::len` bytes.
    pub const NAME: u16 = 8;
    /// A call that nobody sees: [`super::Unseen`].
    pub const UNSEEN: u16 = 5;
    /// A handle that means a new connection from here on, with the settings of the one before:
    /// [`super::Opened`].
    pub const CLEARED: u16 = 10;
    /// A handle that means nothing any more: [`super::Freed`].
    pub const FREED: u16 = 11;
    /// A call whose result is none of a function that reads or writes: [`super::Unseen`].
    pub const SENSELESS: u16 = 12;
    /// A handle whose program closed it, and which may still be read for a while: [`super::Freed`].
    pub const LEFT: u16 = 14;
    /// What a socket moved inside a call, while [`super::control::TRIAL`] asks for it: [`super::Carried`].
    pub const CARRIED: u16 = 13;
    /// A connection begins with TLS, outside every call that is probed: [`super::Hello`], then `Head::len` bytes.
    pub const HELLO: u16 = 15;
}

/// Why bytes of a stream were not copied ([`Gap::cause`]); also the index of the counter, counted
/// from [`counter::LOST`].
pub mod cause {
    /// The ring had no room.
    pub const RING_FULL: u16 = 0;
    /// A page of the buffer was not resident at the return of the call.
    pub const COPY_FAULT: u16 = 1;
    /// No room in the map of streams, so there is no position either.
    pub const MAP_FULL: u16 = 2;
    /// The part of a call above [`super::RECORD_MAX`] × [`super::RECORDS_PER_CALL`]: a bound, not
    /// a loss; counted as `over_limit`.
    pub const CALL_TOO_LONG: u16 = 3;
    /// The process had used its share of a ring that was more than half full, and others needed it.
    pub const OVER_BUDGET: u16 = 4;
    /// The kernel took the bytes from a file: nobody's buffer had them. Nothing went wrong.
    pub const SENDFILE: u16 = 5;
    /// What a plain connection carried by calls that show no buffer, or that nobody saw.
    pub const NO_BUFFER: u16 = 6;
    pub const COUNT: usize = 7;
}

/// Indices into one CPU's row of the counters, each a u64 that only grows.
pub mod counter {
    pub const ROW: usize = 32;
    /// Plaintext bytes of calls that returned, before any copy.
    pub const SEEN: usize = 0;
    /// Data records committed to the ring.
    pub const RECORDS: usize = 2;
    /// Calls entered that the filter let pass.
    pub const ENTRIES: usize = 8;
    /// Calls returned whose frame was found.
    pub const RETURNS: usize = 9;
    /// Calls that the filter turned away.
    pub const FILTERED: usize = 10;
    /// Calls that had no return of their own, by cause: index from here.
    pub const UNMATCHED: usize = 12;
    /// Bytes that gap records announced as lost to a full ring or over budget. What is missing to `LOST`
    /// is pending in the map of streams.
    pub const ANNOUNCED: usize = 20;
    /// Entries that a second link on the same instruction ran again.
    pub const DUPLICATE: usize = 21;
    /// Returns whose byte count could not be read, or exceeds the caller's buffer.
    pub const UNREADABLE: usize = 22;
    /// Streams that ended with a hole that could not be told: [`super::SHELVED`].
    pub const SHELVED: usize = 23;
    /// Bytes not copied, by cause: [`super::cause`] is the index from here.
    pub const LOST: usize = 24;
}

/// How often programs ran at the entries of probe points, whoever called: one row of slots for each CPU, each a u64 that
/// only grows.
pub mod calls {
    /// Points of a few hundred files have one each.
    pub const SLOTS: usize = 4096;

    /// The slot of a point, by its number in the cookie.
    pub const fn slot(number: u64) -> usize {
        number as usize % SLOTS
    }
}

/// Why an entry had no return ([`counter::UNMATCHED`] + cause).
pub mod unmatched {
    /// An outer call returned first, or the stack slot was used again: `longjmp`, an exception.
    pub const ABANDONED: usize = 0;
    /// More than [`super::FRAMES`] calls open on one thread.
    pub const TOO_DEEP: usize = 1;
    /// No room in the map of threads.
    pub const MAP_FULL: usize = 2;
    /// The thread ended, or the process called exec, inside the call.
    pub const EXITED: usize = 3;
    /// A call of the thread is open on another stack: a return probe here would kill the program.
    pub const OTHER_STACK: usize = 4;
    pub const COUNT: usize = 5;
}

/// Indices of the control words. The reader writes them through its mapping.
pub mod control {
    /// Not zero: every program returns at once.
    pub const STOP: usize = 0;
    /// Not zero: the reader looks at the ring by itself, no wake-up is needed.
    pub const AWAKE: usize = 1;
    /// Which filters are active, a sum of [`super::filter`] bits. 0: every process is wanted.
    pub const FILTER: usize = 2;
    /// Not zero: uses of sockets are seen. Without them nobody needs calls that carry no plaintext.
    pub const SOCKETS: usize = 3;
    /// Not zero: there are files whose functions are on trial, and what sockets move inside calls is told.
    pub const TRIAL: usize = 4;
    /// Not zero: the filter is known, so that connections that begin with TLS can be told. Those programs run
    /// before anybody is wanted.
    pub const HELLOS: usize = 5;
    /// Not zero: the filter is in force, so that plain connections can be told. As above.
    pub const PLAIN: usize = 6;
    pub const COUNT: usize = 8;
}

/// Bits of [`control::FILTER`]. A call passes if each active filter lets it pass.
pub mod filter {
    /// Only processes in the map of processes that are marked [`super::WANTED`]: the same bit.
    pub const PROCESS: u64 = 1;
    /// Likewise [`super::MEMBER`].
    pub const MEMBER: u64 = 2;
    pub const UID: u64 = 4;
    /// The leader's comm.
    pub const COMM: u64 = 8;
    /// cgroup v2.
    pub const CGROUP: u64 = 16;
    /// Children of wanted processes are wanted.
    pub const FOLLOW: u64 = 32;
    /// No filter: the probes of a file that is in use were out for a while, so some processes were away.
    pub const INTERRUPTED: u64 = 64;
    /// Calls of those who were let in can pass by later.
    pub const CHANGEABLE: u64 = MEMBER | UID | COMM | CGROUP | INTERRUPTED;
}

/// How many control groups the programs ask for at most.
pub const GROUPS: u32 = 8;

/// How many users they let pass at most, and how many names.
pub const CHOICES: u32 = 1024;

/// Start of every ring record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Head {
    pub kind: u16,
    /// Data, gap: a [`Direction`].
    pub direction: u16,
    /// Payload bytes behind the fixed part. The record's own size is larger: bytes between are old
    /// ring content, other processes' plaintext, and must never be looked at.
    pub len: u32,
    /// Nanoseconds since boot, suspend included where the kernel can (CLOCK_BOOTTIME, 5.8).
    pub time: u64,
}

/// One piece of a stream, in order.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Data {
    pub head: Head,
    /// Thread group in the upper half, thread in the lower, in the initial pid namespace.
    pub pid_tgid: u64,
    /// When the handle's object was made, if that was seen; else when the kernel side first met the
    /// process or saw its last exec. In ns since boot: tells a reused address, an exec and a reused pid
    /// apart. With [`REJOINED`] it is when the handle was seen again.
    pub born: u64,
    /// The library's object: an address in the traced process.
    pub handle: u64,
    /// Bytes of this stream before this piece, counted from the first byte seen.
    pub offset: u64,
    /// Cookie of the only socket used inside the call, 0 if none was, [`SEVERAL_SOCKETS`].
    pub socket: u64,
    /// Attach cookie of the probe point, 0 where the kernel has no cookies.
    pub cookie: u64,
    pub place: Place,
}

/// Where a record stands among those of its thread that tell who used which socket. A loss shows as a jump
/// of the sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Place {
    /// Counts calls without a socket and transfers outside calls, lost ones included.
    pub sequence: u32,
    /// Not zero: since the record before there was something that was not worth one.
    pub skipped: u32,
}

/// A hole in a stream.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Gap {
    pub head: Head,
    pub pid_tgid: u64,
    pub born: u64,
    pub handle: u64,
    /// Position of the first missing byte; `u64::MAX` if unknown (`MAP_FULL`).
    pub offset: u64,
    pub length: u64,
    pub cause: u64,
}

/// A new handle: whatever had its address before is gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Opened {
    pub head: Head,
    pub pid_tgid: u64,
    pub born: u64,
    pub handle: u64,
    /// Attach cookie of the probe point, 0 where the kernel has no cookies.
    pub cookie: u64,
}

/// The last owner of a handle gave it up. What the kernel side knew of it is forgotten, unless it is [`kind::LEFT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Freed {
    pub head: Head,
    pub pid_tgid: u64,
    pub born: u64,
    pub handle: u64,
}

/// A call that was let pass without a return probe: bytes of its handle are missing, and nobody knows how
/// many.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Unseen {
    pub head: Head,
    pub pid_tgid: u64,
    /// As [`Data::born`].
    pub born: u64,
    /// 0: the object is not made yet. Its address may be that of a handle that is known.
    pub handle: u64,
    /// Attach cookie of the probe point.
    pub cookie: u64,
}

/// The two ends of a socket. Addresses are in network byte order; IPv4 is in the first four bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Socket {
    pub head: Head,
    pub cookie: u64,
    pub local: [u8; 16],
    pub peer: [u8; 16],
    pub local_port: u16,
    pub peer_port: u16,
    /// AF_INET (2) or AF_INET6 (10).
    pub family: u16,
    pub protocol: u16,
    /// One of [`side`].
    pub side: u64,
}

/// How a socket came to be connected ([`Socket::side`]).
pub mod side {
    pub const UNKNOWN: u64 = 0;
    pub const CONNECTED: u64 = 1;
    pub const ACCEPTED: u64 = 2;
}

/// Bytes that a socket sent or received outside every TLS call, by a thread that makes TLS calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Transfer {
    /// `direction` as for data, `len` is 0.
    pub head: Head,
    pub pid_tgid: u64,
    pub socket: u64,
    pub length: u32,
    /// The number of handles in [`Process::flags`].
    pub generation: u32,
    pub place: Place,
}

/// A call that carried no plaintext.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Touch {
    pub head: Head,
    pub pid_tgid: u64,
    pub born: u64,
    pub handle: u64,
    pub place: Place,
}

/// The socket of a handle, by its handshake. What it says later may use none: servers read ahead, and write into
/// a buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bound {
    pub head: Head,
    pub pid_tgid: u64,
    pub born: u64,
    pub handle: u64,
    /// Its cookie.
    pub socket: u64,
}

/// Bytes that a TCP socket sent or received inside a TLS call. None of a socket that has a protocol of its own on
/// top: kernel TLS takes plaintext.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Carried {
    /// `direction` as for data, `len` is 0.
    pub head: Head,
    pub pid_tgid: u64,
    /// The innermost call's.
    pub handle: u64,
    pub cookie: u64,
    pub length: u64,
}

/// The end of a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Closed {
    pub head: Head,
    pub socket: u64,
}

/// The server's name, as the program wants it in the handshake.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Name {
    pub head: Head,
    pub pid_tgid: u64,
    pub born: u64,
    pub handle: u64,
}

/// The first bytes that a program sent through a socket begin a TLS handshake, and no call of a probed function was
/// open: whose library that is, is to be found out.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Hello {
    /// Its head is the record's; the cookie is 0.
    pub socket: Socket,
    pub pid_tgid: u64,
}
/// Bytes of a TLS record that say what it is: the record's header and the message's kind.
pub const HELLO_MIN: u64 = 6;
/// Most that is copied of a client's greeting. The server's name is in its first kilobyte, but for clients that
/// shuffle their extensions.
pub const HELLO_MAX: u64 = 2048;

/// In a handle: it is no object of a library, but a connection that says in plaintext what it says. The rest is its
/// socket's cookie. No address of a program has this bit.
pub const PLAIN: u64 = 1 << 63;
/// Ports whose connections are plaintext.
pub const PLAIN_PORTS_MAX: usize = 16;
/// Words of the map of these ports, a bit for each that there is.
pub const PORT_WORDS: usize = 1 << 10;
/// Pieces that are copied of a call with several buffers: none is longer than [`RECORD_MAX`], nor goes over the end of
/// its buffer.
pub const PARTS_MAX: u64 = 96;

/// Room for a name with its zero.
pub const NAME_MAX: u64 = 256;

/// Values of the map of sockets: what the kernel side does about one that is used outside a TLS call. In
/// the bits from [`socket::GENERATION`] on of an [`socket::IGNORED`] one is the generation for which it holds.
pub mod socket {
    /// Tell of it.
    pub const OPEN: u64 = 0;
    /// Its handle is known: don't.
    pub const NAMED: u64 = 1;
    /// Nothing fits it: don't, until the process has another handle.
    pub const IGNORED: u64 = 2;
    pub const GENERATION: u64 = 32;
}

/// Value of the map of processes, keyed by thread group id.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Process {
    pub born: u64,
    /// [`WANTED`], [`MEMBER`], [`OURS`]; from [`HANDLES`] on the number of handles that made a call without a socket, ever:
    /// while it is 0 nobody asks where the sockets of this process belong. Counted without a lock, so now
    /// and then two count as one.
    pub flags: u64,
}
/// Bits of [`Process::flags`] below the number of handles.
pub const HANDLES: u64 = 32;
pub const WANTED: u64 = 1;
/// It is in a container or control group that is watched, as user space found; children are born there.
pub const MEMBER: u64 = 2;
/// One of the agent's own processes: nothing of it is ever recorded.
pub const OURS: u64 = 4;

/// Value of the map of absences, keyed by thread group id: of a process whose calls passed by unseen, because a
/// filter turned it away or because no probes were in its library. Apart from [`Process`], which user space
/// replaces as a whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Absence {
    /// Not zero: since a call of it was seen last.
    pub is_away: u64,
    /// When it was back, in ns since boot; 0: it was not yet. What is older has a hole.
    pub back: u64,
}
/// In a time of birth: the handle may have been in use before, while its process was away or with another
/// transport.
pub const REJOINED: u64 = 1 << 63;

/// What a process used of the ring's upper half, in the window of time with this number.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Budget {
    pub window: u64,
    pub used: u64,
}

/// The process that called last, and since when it is another one than before, in ns since boot; 0: there
/// was one only.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Latest {
    pub tgid: u64,
    pub since: u64,
}

/// Key of the map of streams.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StreamKey {
    pub handle: u64,
    pub born: u64,
    pub tgid: u32,
    pub direction: u32,
}

/// In [`StreamKey::direction`]: the stream is over, and waits with the hole at its end; `born` is its handle's.
pub const SHELVED: u32 = 2;

/// Value of the map of streams.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Stream {
    /// Bytes so far, copied or not.
    pub position: u64,
    /// Of these, the last ones that were lost and are not announced yet; all for one cause,
    /// [`cause::RING_FULL`] or [`cause::OVER_BUDGET`].
    pub pending: u64,
    pub cause: u64,
    /// When the handle's object was made, in ns since boot; 0: before anybody looked. May be [`REJOINED`].
    pub opened: u64,
    /// Received: records of kind [`kind::TOUCH`] so far, up to [`TOUCHES_MAX`]; or [`ON_SOCKET`]. Of a [`PLAIN`] one:
    /// TCP's number of the byte behind the last one that was counted.
    pub touches: u64,
    /// Attach cookie of the probe point that it began at: the file that it needs probes in.
    pub cookie: u64,
}
/// A handshake needs three or four, and it is what they are for.
pub const TOUCHES_MAX: u64 = 16;
/// In [`Stream::touches`]: the handle's first call without plaintext used a socket. It does not work in memory, though
/// later calls may use none: tokio does not ask a socket that has nothing to give.
pub const ON_SOCKET: u64 = 32;

/// One open call.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frame {
    /// Stack pointer at the probed instruction: `[sp]` is the return address.
    pub sp: u64,
    pub ip: u64,
    pub handle: u64,
    pub buf: u64,
    /// Where the library stores the byte count; for [`Shape::Sendfile`] the most that it can be.
    pub out: u64,
    pub cookie: u64,
    /// Cookie of the socket used inside the call; [`SEVERAL_SOCKETS`] if more than one was.
    pub socket: u64,
    /// Direction and shape as in a [`cookie`]; [`FRAME_INNER`], [`FRAME_DONE`]; from [`FRAME_SIZE`] on
    /// the size of the caller's buffer, which the byte count can't exceed.
    pub flags: u64,
}
/// The same call again: an outer frame has the same handle and direction.
pub const FRAME_INNER: u64 = 1 << 8;
/// The bytes were delivered by an inner frame.
pub const FRAME_DONE: u64 = 1 << 9;
pub const FRAME_SIZE: u64 = 16;
pub const SEVERAL_SOCKETS: u64 = u64::MAX;

/// Value of the map of threads, keyed by pid_tgid: the calls that are open, and the call that is
/// just returning. A program's state lives here and not on its stack (see `main.rs`).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Thread {
    /// As `bpf_get_current_pid_tgid` gives it, kept to spare a helper call for each record.
    pub pid_tgid: u64,
    pub born: u64,
    /// [`Absence::back`] of its process.
    pub back: u64,
    /// Frames in use, the outermost first. 0 <= depth <= FRAMES
    pub depth: u64,
    pub key: StreamKey,
    pub buf: u64,
    /// What a stream that begins with this call is after it: `position` is the call's length in bytes,
    /// `cookie` its probe point's, the rest is 0.
    pub call: Stream,
    /// [`Data::born`] of the call.
    pub handle_born: u64,
    /// Stream position of its first byte.
    pub position: u64,
    /// Full records of the call, and the bytes in its last record: `len = full * RECORD_MAX + tail`,
    /// 0 < tail <= RECORD_MAX. Kept here, so that all exits of the copy loop are one state for the
    /// verifier.
    pub full: u64,
    pub tail: u64,
    /// Full records of the call that were copied, and those whose page was away.
    pub copied: u64,
    pub missed: u64,
    pub socket: u64,
    /// Bytes since the ring's level was looked at for this thread.
    pub unchecked: u64,
    pub frames: [Frame; FRAMES],
    /// As in [`Place`].
    pub sequence: u64,
    pub skipped: u64,
    /// Attach cookie of the last [`Shape::Passed`], and when it was done with.
    pub passed: u64,
    pub passed_at: u64,
    /// What was just read of the program's memory, for libraries whose arguments are structures.
    pub words: [u64; 7],
    /// The encrypter that was called last, the number of its record, the attach cookie.
    pub sealed: [u64; 3],
}

/// rustls (`rustls.rs` beside this file). Where its record layer has an encrypter and what belongs to it.
pub const RECORD_LAYER: u64 = 0x10;
/// How far an encrypter's table stands behind that of its decrypter, or before it.
pub const TABLES_APART: [u64; 2] = [0x38, 0x40_u64.wrapping_neg()];
/// Most bytes of a record before it is encrypted.
pub const SEALED_MAX: u64 = 16 << 10;
/// Chunks of which a record can consist; what writes several buffers at once takes no more of them.
pub const PIECES_MAX: u64 = 64;

/// Offsets of kernel structure members, read from BTF by user space: there is no CO-RE in Rust.
/// A group whose members are not all known is switched off (see `task_tgid`, `task_mm`, `sock_family`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Offsets {
    pub task_tgid: u32,
    pub task_group_leader: u32,
    pub task_comm: u32,
    /// A process' ids in the namespaces that it is in.
    pub task_thread_pid: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    pub task_mm: u32,
    pub mm_start_stack: u32,
    pub sock_family: u32,
    pub sock_num: u32,
    pub sock_dport: u32,
    pub sock_rcv_saddr: u32,
    pub sock_daddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_v6_daddr: u32,
    pub sock_protocol: u32,
    pub sock_cookie: u32,
    /// How a socket came to be connected; all 0 if one of them is unknown.
    pub sock_max_ack_backlog: u32,
    pub sock_bind_hash: u32,
    pub bucket_fastreuse: u32,
    /// What has been put on top of TCP; 0 if that is unknown.
    pub sock_ulp: u32,
    /// How much of a connection was sent, and where a task has its registers; the first is 0 if one of them is
    /// unknown.
    pub tcp_bytes_acked: u32,
    pub tcp_snd_una: u32,
    pub tcp_write_seq: u32,
    pub task_stack: u32,
    /// How much of a connection was received, and read, and whether its peer has ended it.
    pub tcp_copied_seq: u32,
    pub tcp_rcv_nxt: u32,
    pub tcp_bytes_received: u32,
    pub sock_state: u32,
    /// From a descriptor to its socket; the first is 0 if one of them is unknown.
    pub task_files: u32,
    pub files_fdt: u32,
    pub fdtable_max_fds: u32,
    pub fdtable_fd: u32,
    pub file_private_data: u32,
    pub socket_file: u32,
    pub socket_sk: u32,
    pub vma_file: u32,
    pub file_inode: u32,
    pub inode_sb: u32,
    pub inode_ino: u32,
    pub inode_mapping: u32,
    pub super_dev: u32,
    pub mapping_i_mmap: u32,
    /// From a task to the names of its control group; the first is 0 if one of them is unknown.
    pub task_cgroups: u32,
    pub css_set_default: u32,
    /// Where a controller's state is that has a hierarchy of version 1, or [`NO_CONTROLLER`].
    pub css_set_controller: u32,
    pub css_cgroup: u32,
    pub cgroup_node: u32,
    pub node_id: u32,
    pub node_name: u32,
    pub node_parent: u32,
}

/// There is no hierarchy of version 1, or it is unknown where its groups are.
pub const NO_CONTROLLER: u32 = u32::MAX;

/// A control group as the kernel knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GroupId {
    pub address: u64,
    /// Of its directory, which no other of its hierarchy ever gets.
    pub number: u64,
}

/// So many groups within each other are told, of names of so many bytes with the zero at their end: Kubernetes in a
/// container has six, and a name may have 255 bytes.
pub const GROUPS_DEEP: usize = 8;
pub const GROUP_NAME: usize = 192;

/// What a control group and those above it are called.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Group {
    /// How many names there are, and one. 0: they are being written.
    pub levels: u32,
    /// Not zero: there are more above.
    pub is_cut: u32,
    /// The innermost first. One that fills its place is cut.
    pub names: [[u8; GROUP_NAME]; GROUPS_DEEP],
}

/// A file as the kernel knows it: what a probe is attached to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FileIdentity {
    /// The address of its `struct inode`, 0 if there is none. Means this file for as long as something
    /// keeps the file open; never shown to anybody.
    pub inode: u64,
    pub number: u64,
    /// Major number << 20 | minor number.
    pub device: u64,
    /// Not zero: somebody maps it.
    pub mappings: u64,
    /// The question: where a process maps it.
    pub address: u64,
    /// Not zero: it could not be looked at just now. Else there is no other answer, also where it is none.
    pub is_busy: u64,
}

#[cfg(not(target_arch = "bpf"))]
mod pod {
    //! Map values and globals that aya reads and writes.
    // SAFETY: plain integers without padding (`IntoBytes` proves it); every bit pattern is valid
    // (`FromBytes` proves it).
    unsafe impl aya::Pod for super::Process {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Absence {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::StreamKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Stream {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Thread {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Offsets {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FileIdentity {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::GroupId {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Group {}
}
