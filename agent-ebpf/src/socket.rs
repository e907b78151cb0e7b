//! Which sockets are used, and by whom. Inside a TLS call the socket is stamped into the thread's open
//! frames, so that no descriptor has to be resolved afterwards. Outside, its use is told as long as somebody
//! asks whose bytes those are: only user space can tell, by what came before and after.
//!
//! A library that works in memory may call the program back, which then uses any socket (Node): inside the
//! calls of a handle that has made one without a socket, and none with one before, nothing is stamped, and all is told.

use core::{ffi::c_void, mem::MaybeUninit};

use agent_ebpf::{
    Carried, Closed, Direction, FRAMES, HANDLES, Head, ON_SOCKET, Process, SEVERAL_SOCKETS, Socket,
    Stream, Thread, Transfer, control, kind, side, socket,
};
use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, generated,
    },
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};

use crate::{
    emit::{NO_WAKEUP, reserve, reserve_spare, standing, wake_flags},
    maps::{
        PROCESSES, SOCKET_IDS, SOCKETS, STREAMS, THREADS, address, control, get, hide, insert,
        lookup, offset, opaque, stopped,
    },
};

/// `TP_PROTO(struct sock *sk, int ret, int flags)`, 6.3 to 7.2.
#[btf_tracepoint(function = "sock_send_length")]
pub fn socket_send(ctx: BtfTracePointContext) -> i32 {
    used(&ctx, Direction::Sent)
}

/// `TP_PROTO(struct sock *sk, int ret, int flags)`, 6.3 to 7.2.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn socket_receive(ctx: BtfTracePointContext) -> i32 {
    used(&ctx, Direction::Received)
}

/// `int tcp_sendmsg(struct sock *sk, struct msghdr *msg, size_t size)`, 5.10 to 7.2. Where the tracepoints
/// are missing; nothing of MPTCP passes here.
#[fexit(function = "tcp_sendmsg")]
pub fn tcp_send(ctx: FExitContext) -> i32 {
    used(&Exit::<NO_FLAGS, 3, false>(ctx), Direction::Sent)
}

/// `int tcp_recvmsg(struct sock *sk, struct msghdr *msg, size_t len, int flags, int *addr_len)`, 5.19 to 7.2.
#[fexit(function = "tcp_recvmsg")]
pub fn tcp_receive(ctx: FExitContext) -> i32 {
    used(&Exit::<3, 5, false>(ctx), Direction::Received)
}

/// As `tcp_send`, where no helper tells a socket's cookie (5.12).
#[fexit(function = "tcp_sendmsg")]
pub fn tcp_send_old(ctx: FExitContext) -> i32 {
    used(&Exit::<NO_FLAGS, 3, true>(ctx), Direction::Sent)
}

/// `int tcp_recvmsg(struct sock *sk, struct msghdr *msg, size_t len, int nonblock, int flags, int *addr_len)`,
/// up to 5.18. One argument more than later: refused there, because its result is none.
#[fexit(function = "tcp_recvmsg")]
pub fn tcp_receive_old(ctx: FExitContext) -> i32 {
    used(&Exit::<4, 6, true>(ctx), Direction::Received)
}

pub const IPPROTO_TCP: u16 = 6;
pub const AF_INET6: u16 = 10;
const IPPROTO_MPTCP: u16 = 262;
/// Looks without taking, and takes what is no data.
pub const MSG_PEEK: i32 = 2;
pub const MSG_ERRQUEUE: i32 = 0x2000;

/// Where the kernel tells of a socket that sent or received.
pub trait Use {
    fn socket(&self) -> *const c_void;
    /// Bytes, or why there are none.
    fn transferred(&self) -> i32;
    fn flags(&self) -> i32;
    /// Which socket it is, for as long as the machine runs.
    fn cookie(&self, thread: *mut Thread, socket: *const c_void) -> u64;
}

impl Use for BtfTracePointContext {
    #[inline(always)]
    fn socket(&self) -> *const c_void {
        self.arg(0)
    }

    #[inline(always)]
    fn transferred(&self) -> i32 {
        self.arg(1)
    }

    #[inline(always)]
    fn flags(&self) -> i32 {
        self.arg(2)
    }

    #[inline(always)]
    fn cookie(&self, _: *mut Thread, socket: *const c_void) -> u64 {
        kernels_cookie(socket)
    }
}

/// The end of a function whose argument `FLAGS` is its flags, and whose result is behind the arguments.
pub struct Exit<const FLAGS: usize, const RESULT: usize, const OWN_COOKIES: bool>(pub FExitContext);

pub const NO_FLAGS: usize = usize::MAX;

impl<const FLAGS: usize, const RESULT: usize, const OWN_COOKIES: bool> Use
    for Exit<FLAGS, RESULT, OWN_COOKIES>
{
    #[inline(always)]
    fn socket(&self) -> *const c_void {
        self.0.arg(0)
    }

    #[inline(always)]
    fn transferred(&self) -> i32 {
        self.0.arg(RESULT)
    }

    #[inline(always)]
    fn flags(&self) -> i32 {
        if FLAGS == NO_FLAGS {
            return 0;
        }
        self.0.arg(FLAGS)
    }

    #[inline(always)]
    fn cookie(&self, thread: *mut Thread, socket: *const c_void) -> u64 {
        if OWN_COOKIES {
            return own_cookie(thread, socket);
        }
        kernels_cookie(socket)
    }
}

#[inline(always)]
fn kernels_cookie(socket: *const c_void) -> u64 {
    // SAFETY: the verifier knows the argument as a socket.
    unsafe { generated::bpf_get_socket_cookie(socket.cast_mut()) }
}

/// The time at which the socket was first met, and the CPU: nobody else's. By its address, which is used
/// again: what we know of it goes with the socket, and a socket with other ports is another one.
#[inline(always)]
pub fn own_cookie(thread: *mut Thread, socket: *const c_void) -> u64 {
    // SAFETY: a map value, of which `buf` and `call` are free as `tail` is; they hold a key and a value.
    unsafe {
        (*thread).buf = socket as u64;
        let known: *mut [u64; 2] = lookup(
            address(&SOCKET_IDS),
            (&raw const (*hide(thread)).buf).cast(),
        );
        (*thread).call.pending = u64::from(read_u16(socket, offset!(sock_num))) << 16
            | u64::from(read_u16(socket, offset!(sock_dport)));
        if !known.is_null() && (*known)[1] == get!(thread, call.pending) {
            return (*known)[0];
        }
        let cpu = bpf_get_smp_processor_id() & 0xff;
        (*thread).call.position = bpf_ktime_get_boot_ns() << 8 | u64::from(cpu);
        insert(
            address(&SOCKET_IDS),
            (&raw const (*hide(thread)).buf).cast(),
            (&raw const (*hide(thread)).call).cast(),
        );
        get!(thread, call.position)
    }
}

#[inline(always)]
fn used(usage: &impl Use, direction: Direction) -> i32 {
    if stopped() {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    // Every send and receive of the machine passes here: nearly all of them end at this lookup.
    let Some(thread) = THREADS.get_ptr_mut(&id) else {
        return 0;
    };
    // SAFETY: a map value.
    let is_inside = unsafe { get!(thread, depth) != 0 && !works_in_memory(thread) };
    let transferred = usage.transferred();
    // Inside a call a socket that had nothing to give was asked all the same.
    if !is_inside && (transferred <= 0 || usage.flags() & (MSG_PEEK | MSG_ERRQUEUE) != 0) {
        return 0;
    }
    // SAFETY: a map value; the field is free, because no call is returning.
    unsafe { (*thread).tail = transferred as u64 };
    let sk = usage.socket();
    let protocol = read_u16(sk, offset!(sock_protocol));
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return 0;
    }
    // SAFETY: a map value, whose `full` is free as `tail` is.
    unsafe {
        let has_moved = transferred > 0 && usage.flags() & (MSG_PEEK | MSG_ERRQUEUE) == 0;
        let is_asked = has_moved && protocol == IPPROTO_TCP && control(control::TRIAL) != 0;
        (*thread).full = u64::from(is_inside && is_asked && is_bare(thread, sk));
    }
    // SAFETY: a map value; `call` is free as `tail` is.
    let known: *mut u64 = unsafe {
        (*thread).call.position = usage.cookie(thread, sk);
        lookup(address(&SOCKETS), cookie_of(thread))
    };
    if is_inside {
        stamp(thread);
        if known.is_null() {
            announce(sk, thread, protocol);
        }
        // SAFETY: a map value.
        if unsafe { get!(thread, full) } != 0 {
            carry(thread, direction);
        }
        return 0;
    }
    // SAFETY: a map value, as `thread` is, whose `full` is free as `tail` is.
    unsafe {
        let state = if known.is_null() { UNKNOWN } else { *known };
        if state == socket::NAMED {
            (*thread).skipped = 1;
            return 0;
        }
        let generation = generation(thread);
        if generation == 0 {
            return 0;
        }
        if state == socket::IGNORED | generation << socket::GENERATION {
            (*thread).skipped = 1;
            return 0;
        }
        (*thread).full = generation;
        if state == UNKNOWN {
            announce(sk, thread, protocol);
        }
    }
    tell(thread, direction);
    0
}

/// A socket that belongs to the call of `thread`, as its program says: into `thread.socket`, and announced. No
/// helper tells a probe the socket's cookie, so it has one of ours.
#[inline(always)]
pub fn met(thread: *mut Thread, sk: *const c_void) {
    let protocol = read_u16(sk, offset!(sock_protocol));
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return;
    }
    // SAFETY: map values; `call` is free, because what it is for comes later.
    unsafe {
        let cookie = own_cookie(thread, sk);
        (*thread).call.position = cookie;
        let known: *mut u64 = lookup(address(&SOCKETS), cookie_of(thread));
        if known.is_null() {
            announce(sk, thread, protocol);
        }
        (*thread).socket = get!(thread, call.position);
    }
}

/// Where the cookie of the socket in use is, as a key.
#[inline(always)]
pub fn cookie_of(thread: *mut Thread) -> *const c_void {
    // SAFETY: inside a map value.
    unsafe { (&raw const (*hide(thread)).call.position).cast() }
}

/// How many handles of the process work in memory.
#[inline(always)]
unsafe fn generation(thread: *mut Thread) -> u64 {
    // SAFETY: map values, and a key of PROCESSES.
    unsafe {
        let tgid = (&raw const (*hide(thread)).key.tgid).cast();
        let process: *mut Process = lookup(address(&PROCESSES), tgid);
        if process.is_null() {
            return 0;
        }
        get!(process, flags) >> HANDLES
    }
}

/// Has the handle of the innermost open call made one without a socket, and none with one before?
#[inline(always)]
pub unsafe fn works_in_memory(thread: *mut Thread) -> bool {
    // SAFETY: map values, and a key of STREAMS, which is free: no call is returning.
    unsafe {
        if generation(thread) == 0 {
            return false;
        }
        let innermost = (opaque(get!(thread, depth) - 1) & 3) as usize;
        (*thread).key.handle = get!(thread, frames[innermost].handle);
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = Direction::Received as u32;
        let key = (&raw const (*hide(thread)).key).cast();
        let stream: *mut Stream = lookup(address(&STREAMS), key);
        !stream.is_null() && get!(stream, touches) & !ON_SOCKET != 0
    }
}

/// No value of the map of sockets.
const UNKNOWN: u64 = u64::MAX;

/// Sends what a socket transferred: `thread.tail` bytes, in the generation `thread.full`.
#[inline(always)]
fn tell(thread: *mut Thread, direction: Direction) {
    // SAFETY: a map value; `record` is a reservation of this size, every field is written.
    unsafe {
        (*thread).sequence = get!(thread, sequence) + 1;
        let record: *mut Transfer = reserve_spare(size_of::<Transfer>() as u64).cast();
        if record.is_null() {
            return;
        }
        (*record).head = Head {
            kind: kind::TRANSFER,
            direction: direction as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).socket = get!(thread, call.position);
        (*record).length = get!(thread, tail) as u32;
        (*record).generation = get!(thread, full) as u32;
        (*record).place = standing(thread);
        // The data that it is about wakes the reader.
        generated::bpf_ringbuf_submit(record.cast(), NO_WAKEUP);
    }
}

/// Is TCP all that the socket speaks? Nothing is on top of it, as kernel TLS would be, which takes plaintext.
#[inline(always)]
pub fn is_bare(thread: *mut Thread, sk: *const c_void) -> bool {
    if offset!(sock_ulp) == 0 {
        return false;
    }
    // SAFETY: a map value, whose `buf` is free as `tail` is; the helper fails on a wrong address, and reads eight
    // bytes into eight.
    unsafe {
        let from = (sk as u64 + offset!(sock_ulp)) as *const c_void;
        let to = (&raw mut (*hide(thread)).buf).cast();
        generated::bpf_probe_read_kernel(to, 8, from) == 0 && get!(thread, buf) == 0
    }
}

/// Sends what a socket moved inside the innermost open call: `thread.tail` bytes.
#[inline(always)]
fn carry(thread: *mut Thread, direction: Direction) {
    // SAFETY: a map value, whose index the mask keeps below FRAMES; `record` is a reservation of this size, every
    // field is written.
    unsafe {
        let record: *mut Carried = reserve_spare(size_of::<Carried>() as u64).cast();
        if record.is_null() {
            return;
        }
        (*record).head = Head {
            kind: kind::CARRIED,
            direction: direction as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        let innermost = (opaque(get!(thread, depth) - 1) & 3) as usize;
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).handle = get!(thread, frames[innermost].handle);
        (*record).cookie = get!(thread, frames[innermost].cookie);
        (*record).length = get!(thread, tail);
        // The data that it is about wakes the reader.
        generated::bpf_ringbuf_submit(record.cast(), NO_WAKEUP);
    }
}

/// `TP_PROTO(struct sock *sk)`, 5.10 to 7.2. The current task is anybody.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn socket_closed(ctx: BtfTracePointContext) -> i32 {
    if stopped() {
        return 0;
    }
    let sk: *const c_void = ctx.arg(0);
    let mut cookie = 0u64;
    let key = sk as u64;
    if let Some(known) = SOCKET_IDS.get_ptr(&key) {
        // SAFETY: a map value.
        cookie = unsafe { (*known)[0] };
        let _ = SOCKET_IDS.remove(&key);
    } else {
        // SAFETY: the helper fails on a wrong address; eight bytes. Not the helper for cookies: it would
        // give one to each socket of the machine, just before its end.
        unsafe {
            let from = (sk as u64 + offset!(sock_cookie)) as *const c_void;
            generated::bpf_probe_read_kernel((&raw mut cookie).cast(), 8, from);
        }
    }
    if cookie == 0 || SOCKETS.get_ptr(&cookie).is_none() {
        return 0;
    }
    let _ = SOCKETS.remove(&cookie);
    let record: *mut Closed = reserve(size_of::<Closed>() as u64).cast();
    if record.is_null() {
        return 0;
    }
    // SAFETY: `record` is a reservation of this size, every field is written.
    unsafe {
        (*record).head = Head {
            kind: kind::CLOSED,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).socket = cookie;
        generated::bpf_ringbuf_submit(record.cast(), NO_WAKEUP);
    }
    0
}

/// Nested calls of one thread all end at this socket.
#[inline(always)]
fn stamp(thread: *mut Thread) {
    let mut i = 0;
    while i < FRAMES {
        // SAFETY: a map value; i < FRAMES.
        unsafe {
            if i as u64 >= get!(thread, depth) {
                return;
            }
            let cookie = get!(thread, call.position);
            let socket = &raw mut (*thread).frames[i].socket;
            if *socket == 0 {
                *socket = cookie;
            } else if *socket != cookie {
                *socket = SEVERAL_SOCKETS;
            }
        }
        i += 1;
    }
}

/// Sends the two ends of the socket. If the ring is full the next use tries again.
#[inline(always)]
fn announce(sk: *const c_void, thread: *mut Thread, protocol: u16) {
    let side = side_of(sk);
    let record: *mut Socket = reserve(size_of::<Socket>() as u64).cast();
    if record.is_null() {
        return;
    }
    // SAFETY: `record` is a reservation of this size; every field is written.
    unsafe {
        (*record).head = Head {
            kind: kind::SOCKET,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).cookie = get!(thread, call.position);
        (*record).side = side;
        let family = read_u16(sk, offset!(sock_family));
        (*record).family = family;
        (*record).protocol = protocol;
        (*record).local_port = read_u16(sk, offset!(sock_num));
        (*record).peer_port = u16::from_be(read_u16(sk, offset!(sock_dport)));
        let (local, peer) = (&raw mut (*record).local, &raw mut (*record).peer);
        // By words: an array of bytes would be a call of `memset`.
        for half in 0..2 {
            local.cast::<u64>().add(half).write(opaque(0));
            peer.cast::<u64>().add(half).write(opaque(0));
        }
        if family == AF_INET6 {
            read::<16>(local, sk, offset!(sock_v6_rcv_saddr));
            read::<16>(peer, sk, offset!(sock_v6_daddr));
        } else {
            read::<4>(local, sk, offset!(sock_rcv_saddr));
            read::<4>(peer, sk, offset!(sock_daddr));
        }
        generated::bpf_ringbuf_submit(record.cast(), wake_flags());
        (*thread).buf = socket::OPEN;
        let value = (&raw const (*hide(thread)).buf).cast();
        insert(address(&SOCKETS), cookie_of(thread), value);
    }
}

/// Did the program connect this socket or accept it? Told by what the kernel keeps anyway, so that it is
/// known for old sockets, too:
///
/// - An accepted socket is a copy of its listener, whose backlog it keeps.
/// - A socket that connects without `bind` gets its port from the kernel, whose mark on the port's bucket is
///   -1 (`__inet_hash_connect`). A listener's port has another one.
///
/// Whoever binds a port and connects from it, or listens with a backlog of 0, is neither.
#[inline(always)]
pub fn side_of(sk: *const c_void) -> u64 {
    if offset!(sock_max_ack_backlog) == 0 {
        return side::UNKNOWN;
    }
    let mut word = MaybeUninit::<u64>::uninit();
    // SAFETY: the helper fails on a wrong address and then leaves zeros; not more bytes than a word has.
    unsafe {
        let word: *mut u64 = word.as_mut_ptr();
        *word = 0;
        let from = (sk as u64 + offset!(sock_max_ack_backlog)) as *const c_void;
        generated::bpf_probe_read_kernel(word.cast(), 4, from);
        if word.read_volatile() != 0 {
            return side::ACCEPTED;
        }
        let from = (sk as u64 + offset!(sock_bind_hash)) as *const c_void;
        generated::bpf_probe_read_kernel(word.cast(), 8, from);
        let from = (word.read_volatile() + offset!(bucket_fastreuse)) as *const c_void;
        *word = 0;
        generated::bpf_probe_read_kernel(word.cast(), 1, from);
        if word.read_volatile() == 0xff {
            return side::CONNECTED;
        }
    }
    side::UNKNOWN
}

#[inline(always)]
fn read_u16(sk: *const c_void, offset: u64) -> u16 {
    let mut value = 0u16;
    // SAFETY: the helper fails on a wrong address and then leaves zeros; two bytes.
    unsafe {
        let from = (sk as u64 + offset) as *const c_void;
        generated::bpf_probe_read_kernel((&raw mut value).cast(), 2, from);
    }
    value
}

#[inline(always)]
pub fn read<const N: u32>(to: *mut [u8; 16], sk: *const c_void, offset: u64) {
    // SAFETY: as above; N <= 16.
    unsafe {
        let from = (sk as u64 + offset) as *const c_void;
        generated::bpf_probe_read_kernel(to.cast(), N, from);
    }
}
