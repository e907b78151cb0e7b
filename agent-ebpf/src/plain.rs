//! What connections with certain ports say, which speak no TLS: the payload of their system calls.
//!
//! Told where a socket has sent or received, when nobody can change any more how much it was. The thread is still in its
//! system call, whose arguments say where the bytes are, as for `hello.rs`. TCP numbers each byte of a connection, so
//! that what passed by another way (from a file, by io_uring, or unseen) is a hole of known length and no splice.
//!
//! Two threads that send on one socket at once are told in the order in which they come here.

use core::{ffi::c_void, mem::offset_of};

use agent_ebpf::{
    Direction, Head, PARTS_MAX, PLAIN, RECORD_MAX, REJOINED, Socket, Stream, Thread, cause,
    control, counter, kind, socket,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_boot_ns, generated},
    macros::{btf_tracepoint, fexit, tracepoint},
    programs::{BtfTracePointContext, FExitContext, TracePointContext},
};

use crate::{
    emit::{self, reserve, wake_flags},
    filter::admit_call,
    hello::{IOVEC, MSG_IOV, describe, kernel, register, registers, user},
    maps::{
        ENCRYPTED, PORTS, SOCKETS, address, control, count, get, hide, insert, lookup, offset,
        opaque, stopped,
    },
    socket::{
        Exit, IPPROTO_TCP, MSG_ERRQUEUE, MSG_PEEK, NO_FLAGS, Use, is_bare, own_cookie, side_of,
        works_in_memory,
    },
};

/// `TP_PROTO(struct sock *sk, int ret, int flags)`, 6.3 to 7.2, as perf events: no task runs in between. In the programs
/// below one may, on newer kernels (7.0), and what it sends or receives then is a hole.
#[tracepoint(category = "sock", name = "sock_send_length")]
#[inline(always)]
pub fn plain_send_event(ctx: TracePointContext) -> u32 {
    moved(&Event(ctx), Direction::Sent) as u32
}

#[tracepoint(category = "sock", name = "sock_recv_length")]
#[inline(always)]
pub fn plain_receive_event(ctx: TracePointContext) -> u32 {
    moved(&Event(ctx), Direction::Received) as u32
}

/// The same tracepoints.
#[btf_tracepoint(function = "sock_send_length")]
#[inline(always)]
pub fn plain_send(ctx: BtfTracePointContext) -> i32 {
    moved(&ctx, Direction::Sent)
}

#[btf_tracepoint(function = "sock_recv_length")]
#[inline(always)]
pub fn plain_receive(ctx: BtfTracePointContext) -> i32 {
    moved(&ctx, Direction::Received)
}

/// Where the tracepoints are missing, as in `socket.rs`.
#[fexit(function = "tcp_sendmsg")]
#[inline(always)]
pub fn plain_tcp_send(ctx: FExitContext) -> i32 {
    moved(&Exit::<NO_FLAGS, 3, false>(ctx), Direction::Sent)
}

#[fexit(function = "tcp_recvmsg")]
#[inline(always)]
pub fn plain_tcp_receive(ctx: FExitContext) -> i32 {
    moved(&Exit::<3, 5, false>(ctx), Direction::Received)
}

#[fexit(function = "tcp_sendmsg")]
#[inline(always)]
pub fn plain_tcp_send_old(ctx: FExitContext) -> i32 {
    moved(&Exit::<NO_FLAGS, 3, true>(ctx), Direction::Sent)
}

#[fexit(function = "tcp_recvmsg")]
#[inline(always)]
pub fn plain_tcp_receive_old(ctx: FExitContext) -> i32 {
    moved(&Exit::<4, 6, true>(ctx), Direction::Received)
}

/// `struct trace_event_raw_sock_msg_length`, of which user space has checked that it is so.
struct Event(TracePointContext);

impl Use for Event {
    #[inline(always)]
    fn socket(&self) -> *const c_void {
        // SAFETY: a field of the program's own context.
        unsafe {
            self.0
                .as_ptr()
                .byte_add(8)
                .cast::<*const c_void>()
                .read_volatile()
        }
    }

    #[inline(always)]
    fn transferred(&self) -> i32 {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().byte_add(20).cast::<i32>().read_volatile() }
    }

    #[inline(always)]
    fn flags(&self) -> i32 {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().byte_add(24).cast::<i32>().read_volatile() }
    }

    /// No helper tells such a program the socket's own.
    #[inline(always)]
    fn cookie(&self, thread: *mut Thread, socket: *const c_void) -> u64 {
        own_cookie(thread, socket)
    }
}

/// Beside the stream, or out of nobody's buffer.
const MSG_OOB: i32 = 1;
const MSG_TRUNC: i32 = 0x20;

/// Words of [`Thread::words`]: TCP's number of the byte behind the last one of each direction, the call's included;
/// bytes of the call that are still to be copied; the present buffer; where the next one is described, and how many
/// there are.
const RECEIVED: usize = Direction::Received as usize;
const SENT: usize = Direction::Sent as usize;
const LEFT: usize = 2;
const BASE: usize = 3;
const SIZE: usize = 4;
const NEXT: usize = 5;
const COUNT: usize = 6;

/// Every send and receive of the machine passes here: nearly all of them end at their ports.
#[inline(always)]
fn moved(usage: &impl Use, direction: Direction) -> i32 {
    if usage.transferred() <= 0 || stopped() || control(control::PLAIN) == 0 {
        return 0;
    }
    if usage.flags() & (MSG_PEEK | MSG_ERRQUEUE | MSG_OOB) != 0 {
        return 0;
    }
    let mut id = 0;
    let word = &raw mut id;
    if !has_port(word, usage.socket()) {
        return 0;
    }
    id = bpf_get_current_pid_tgid();
    let Some(thread) = admit_call(&id) else {
        return 0;
    };
    // SAFETY: a map value, of which all is free that is not a frame's: no call is returning.
    unsafe {
        // Inside of a call it is TLS, and told by that.
        if get!(thread, depth) != 0 && !works_in_memory(thread) {
            return 0;
        }
        if offset!(sock_ulp) != 0 && !is_bare(thread, usage.socket()) {
            return 0;
        }
        let cookie = usage.cookie(thread, usage.socket());
        (*thread).socket = cookie;
        (*thread).key.handle = cookie | PLAIN;
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = direction as u32;
        let key = (&raw const (*hide(thread)).socket).cast();
        let encrypted: *mut u64 = lookup(address(&ENCRYPTED), key);
        if !encrypted.is_null() {
            return 0;
        }
        let known: *mut u64 = lookup(address(&SOCKETS), key);
        (*thread).tail = u64::from(known.is_null());
        (*thread).words[SIZE] = opaque(0);
        (*thread).words[COUNT] = opaque(0);
        if !find_buffer(thread, word, usage, direction) {
            return 0;
        }
        number(thread, word, usage.socket());
        (*thread).call.position = usage.transferred() as u64;
        if emit::stream(thread).is_null() {
            if is_encrypted(thread, word) {
                insert(
                    address(&ENCRYPTED),
                    (&raw const (*hide(thread)).socket).cast(),
                    (&raw const (*hide(thread)).socket).cast(),
                );
                return 0;
            }
            meet(thread, word, usage.socket(), direction);
        }
        if get!(thread, tail) != 0 {
            introduce(thread, word, usage.socket());
        }
        tell(thread, direction as usize);
        // A use of a socket outside of every call, of which nothing else is told.
        (*thread).skipped = 1;
    }
    0
}

/// Is it TCP, and has one of its ends one of the ports?
#[inline(always)]
fn has_port(word: *mut u64, sk: *const c_void) -> bool {
    let Some(ports) = PORTS.get_ptr(0) else {
        return false;
    };
    let at = |offset| sk as u64 + offset;
    let is_one = |port: u64| {
        // SAFETY: the mask keeps the index inside.
        let bits = unsafe {
            ports
                .cast::<u64>()
                .add((opaque(port >> 6) & 1023) as usize)
                .read_volatile()
        };
        bits >> (port & 63) & 1 != 0
    };
    let local = kernel::<2>(word, at(offset!(sock_num)));
    if !is_one(local) {
        let peer = kernel::<2>(word, at(offset!(sock_dport)));
        if !is_one((peer << 8 | peer >> 8) & 0xffff) {
            return false;
        }
    }
    kernel::<2>(word, at(offset!(sock_protocol))) == u64::from(IPPROTO_TCP)
}

/// Where the bytes of the call are: the first buffer that is not empty. Not any, if the system call shows none. False:
/// it is nobody's call on this socket, but the kernel's own use of it.
#[inline(always)]
unsafe fn find_buffer(
    thread: *mut Thread,
    word: *mut u64,
    usage: &impl Use,
    direction: Direction,
) -> bool {
    const READ: u64 = 0;
    const WRITE: u64 = 1;
    const READV: u64 = 19;
    const WRITEV: u64 = 20;
    const SENDTO: u64 = 44;
    const RECVFROM: u64 = 45;
    const SENDMSG: u64 = 46;
    const RECVMSG: u64 = 47;
    const PREADV2: u64 = 327;
    const PWRITEV2: u64 = 328;
    // SAFETY: a map value; the helpers fail on wrong addresses.
    unsafe {
        // SAFETY: no arguments.
        let task = bpf_get_current_task();
        if kernel::<8>(word, task + offset!(task_mm)) == 0 {
            return false;
        }
        let Some(regs) = registers(word) else {
            return true;
        };
        // Kept where there is room: registers are few.
        (*thread).position = regs;
        (*thread).words[LEFT] = register(word, regs, offset_of!(pt_regs, orig_rax));
        macro_rules! argument {
            ($register:ident) => {
                register(word, get!(thread, position), offset_of!(pt_regs, $register))
            };
        }
        let is_sent = matches!(direction, Direction::Sent);
        let (one, other, vector, message, positioned) = if is_sent {
            (WRITE, SENDTO, WRITEV, SENDMSG, PWRITEV2)
        } else {
            (READ, RECVFROM, READV, RECVMSG, PREADV2)
        };
        let call = get!(thread, words[LEFT]);
        let is_vector = call == vector || call == positioned;
        if !is_vector && call != one && call != other && call != message {
            return true;
        }
        if !is_of(word, argument!(rdi), usage.socket()) {
            return false;
        }
        if usage.flags() & MSG_TRUNC != 0 {
            return true;
        }
        (*thread).words[BASE] = argument!(rsi);
        (*thread).words[NEXT] = get!(thread, words[BASE]);
        let count = argument!(rdx);
        let call = get!(thread, words[LEFT]);
        if call == one || call == other {
            (*thread).words[SIZE] = count;
            return true;
        }
        (*thread).words[COUNT] = count;
        if call == message {
            if !user::<8>(word, get!(thread, words[BASE]) + MSG_IOV) {
                (*thread).words[COUNT] = opaque(0);
                return true;
            }
            (*thread).words[NEXT] = word.read_volatile();
            if !user::<8>(word, get!(thread, words[BASE]) + MSG_IOV + 8) {
                (*thread).words[COUNT] = opaque(0);
                return true;
            }
            (*thread).words[COUNT] = word.read_volatile();
        }
        if next(thread) && get!(thread, words[SIZE]) == 0 {
            next(thread);
        }
    }
    true
}

/// Is this descriptor the socket's?
#[inline(always)]
fn is_of(word: *mut u64, descriptor: u64, sk: *const c_void) -> bool {
    if offset!(task_files) == 0 {
        return true;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let files = kernel::<8>(word, task + offset!(task_files));
    let table = kernel::<8>(word, files + offset!(files_fdt));
    let files = kernel::<8>(word, table + offset!(fdtable_fd));
    let file = kernel::<8>(word, files + (descriptor & 0xffff_ffff) * 8);
    let socket = kernel::<8>(word, file + offset!(file_private_data));
    kernel::<8>(word, socket + offset!(socket_sk)) == sk as u64
}

/// Goes on to the next buffer. False if there is none.
#[inline(always)]
unsafe fn next(thread: *mut Thread) -> bool {
    // SAFETY: a map value, into whose two words two are read; the helper fails on a wrong address.
    unsafe {
        if get!(thread, words[COUNT]) == 0 {
            return false;
        }
        (*thread).words[COUNT] = get!(thread, words[COUNT]) - 1;
        let from = get!(thread, words[NEXT]);
        (*thread).words[NEXT] = from + IOVEC;
        let to = (&raw mut (*hide(thread)).words[BASE]).cast();
        if generated::bpf_probe_read_user(to, 16, from as *const c_void) != 0 {
            (*thread).words[SIZE] = opaque(0);
            (*thread).words[COUNT] = opaque(0);
            return false;
        }
    }
    true
}

/// How far both directions are, as TCP counts: the end of the peer's stream has a number, too.
#[inline(always)]
unsafe fn number(thread: *mut Thread, word: *mut u64, sk: *const c_void) {
    /// Those in which the peer has ended its stream: TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING.
    const ENDED: u64 = 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11;
    let at = |offset| sk as u64 + offset;
    // SAFETY: a map value.
    unsafe {
        (*thread).words[SENT] = kernel::<4>(word, at(offset!(tcp_write_seq)));
        (*thread).words[RECEIVED] = kernel::<4>(word, at(offset!(tcp_copied_seq)));
        let state = kernel::<1>(word, at(offset!(sock_state)));
        let come = kernel::<4>(word, at(offset!(tcp_rcv_nxt)));
        if ENDED >> (state & 31) & 1 != 0 && come == get!(thread, words[RECEIVED]) {
            (*thread).words[RECEIVED] = (come - 1) & 0xffff_ffff;
        }
    }
}

/// Does what is seen of the connection first begin with a TLS record?
#[inline(always)]
unsafe fn is_encrypted(thread: *mut Thread, word: *mut u64) -> bool {
    // SAFETY: a map value, and a word of the caller's.
    unsafe {
        word.write_volatile(0);
        if get!(thread, words[SIZE]) == 0 || !user::<1>(word, get!(thread, words[BASE])) {
            return false;
        }
        let kind = word.read_volatile() & 0xff;
        if !(20..=23).contains(&kind) {
            return false;
        }
        if get!(thread, words[SIZE]) < 3 || get!(thread, call.position) < 3 {
            return true;
        }
        if !user::<3>(word, get!(thread, words[BASE])) {
            return false;
        }
        let version = word.read_volatile() >> 8 & 0xffff;
        // 3.0 to 3.4.
        version & 0xff == 3 && version >> 8 <= 4
    }
}

/// The connection begins here, or is joined in its middle: both directions at once.
#[inline(always)]
unsafe fn meet(thread: *mut Thread, word: *mut u64, sk: *const c_void, direction: Direction) {
    let at = |offset| sk as u64 + offset;
    let this = direction as usize;
    // SAFETY: a map value.
    unsafe {
        // This call's bytes are not before it.
        let own = get!(thread, call.position);
        (*thread).words[LEFT] = own;
        (*thread).words[this] = (get!(thread, words[this]) - own) & 0xffff_ffff;
        (*thread).position = kernel::<8>(word, at(offset!(tcp_bytes_acked)));
        let sent = get!(thread, words[SENT]) - kernel::<4>(word, at(offset!(tcp_snd_una)));
        // As far as the other end knows, this call's bytes may be there already.
        (*thread).position =
            get!(thread, position).wrapping_add_signed(i64::from(sent as u32 as i32));
        // First of the two: what comes meanwhile must not make it older.
        (*thread).call.opened = kernel::<8>(word, at(offset!(tcp_bytes_received)));
        let come = kernel::<4>(word, at(offset!(tcp_rcv_nxt)));
        let unread = (come - get!(thread, words[RECEIVED])) & 0xffff_ffff;
        // What is acknowledged may include the SYN.
        let is_begin =
            get!(thread, position) as i64 <= 1 && get!(thread, call.opened) as i64 <= unread as i64;
        (*thread).call.opened = if is_begin { 0 } else { REJOINED };
        (*thread).call.opened = get!(thread, call.opened) | bpf_ktime_get_boot_ns();
        (*thread).call.cookie = opaque(0);
        emit::meet(thread);
        (*thread).key.direction = direction as u32;
        (*thread).call.position = get!(thread, words[LEFT]);
        let number = get!(thread, words[this]) + get!(thread, words[LEFT]);
        (*thread).words[this] = number & 0xffff_ffff;
    }
}

/// Sends the two ends of the socket, as `announce` does, with less of the stack. Nobody else is to tell of its use.
#[inline(always)]
unsafe fn introduce(thread: *mut Thread, word: *mut u64, sk: *const c_void) {
    // SAFETY: map values; `record` is a reservation of this size; every field is written.
    unsafe {
        (*thread).position = side_of(sk);
        let record: *mut Socket = reserve(size_of::<Socket>() as u64).cast();
        if record.is_null() {
            return;
        }
        (*record).head = Head {
            kind: kind::SOCKET,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        let (local, peer) = (&raw mut (*record).local, &raw mut (*record).peer);
        // By words: an array of bytes would be a call of `memset`.
        for half in 0..2 {
            local.cast::<u64>().add(half).write(opaque(0));
            peer.cast::<u64>().add(half).write(opaque(0));
        }
        describe(word, record, sk);
        (*record).cookie = get!(thread, socket);
        (*record).side = get!(thread, position);
        generated::bpf_ringbuf_submit(record.cast(), wake_flags());
        (*thread).buf = socket::NAMED;
        let value = (&raw const (*hide(thread)).buf).cast();
        let key = (&raw const (*hide(thread)).socket).cast();
        insert(address(&SOCKETS), key, value);
    }
}

/// Sends what is missing before the call, and the call.
#[inline(always)]
unsafe fn tell(thread: *mut Thread, this: usize) {
    // SAFETY: map values.
    unsafe {
        (*thread).words[LEFT] = get!(thread, call.position);
        (*thread).position = opaque(0);
        let stream: *mut Stream = emit::stream(thread);
        if !stream.is_null() {
            let ahead = get!(thread, words[this]) - get!(stream, touches);
            let ahead = i64::from(ahead as u32 as i32);
            if ahead > 0 {
                (*stream).touches = get!(thread, words[this]);
            }
            let missing = ahead - get!(thread, words[LEFT]) as i64;
            if missing > 0 {
                (*thread).position = missing as u64;
            }
        }
        // Without room for it the call itself begins the stream, if there is room again.
        (*thread).call.touches = get!(thread, words[this]);
        (*thread).call.opened = bpf_ktime_get_boot_ns() | REJOINED;
        (*thread).call.pending = opaque(0);
        (*thread).call.cause = opaque(0);
        (*thread).call.cookie = opaque(0);
        count(counter::ENTRIES, 1);
        count(counter::RETURNS, 1);
        if get!(thread, position) != 0 {
            (*thread).call.position = get!(thread, position);
            count(counter::SEEN, get!(thread, call.position));
            emit::unbuffered(thread, cause::NO_BUFFER);
        }
        (*thread).call.position = get!(thread, words[LEFT]);
        count(counter::SEEN, get!(thread, call.position));
        if get!(thread, words[SIZE]) >= get!(thread, words[LEFT]) {
            (*thread).buf = get!(thread, words[BASE]);
            emit::call(thread);
        } else if get!(thread, words[SIZE]) | get!(thread, words[COUNT]) == 0 {
            emit::unbuffered(thread, cause::NO_BUFFER);
        } else {
            parts(thread);
        }
    }
}

/// Sends a call with several buffers.
#[inline(always)]
unsafe fn parts(thread: *mut Thread) {
    // SAFETY: a map value.
    unsafe {
        if !emit::start(thread) {
            return;
        }
        let mut i = 0;
        while i < PARTS_MAX {
            if get!(thread, words[LEFT]) == 0 {
                return;
            }
            i += 1;
            if get!(thread, words[SIZE]) == 0 && !next(thread) {
                break;
            }
            let mut size = get!(thread, words[SIZE]);
            if size > get!(thread, words[LEFT]) {
                size = get!(thread, words[LEFT]);
            }
            if size == 0 {
                continue;
            }
            // Of a size between the two largest records only as much as wastes nothing.
            if size >= RECORD_MAX {
                size = RECORD_MAX;
            } else if size > RECORD_MAX / 4 {
                size = RECORD_MAX / 4;
            }
            (*thread).tail = size;
            (*thread).buf = get!(thread, words[BASE]);
            if !emit::part(thread) {
                emit::lose(thread, get!(thread, words[LEFT]));
                return;
            }
            (*thread).words[BASE] = get!(thread, words[BASE]) + get!(thread, tail);
            (*thread).words[SIZE] = get!(thread, words[SIZE]) - get!(thread, tail);
            (*thread).words[LEFT] = get!(thread, words[LEFT]) - get!(thread, tail);
        }
        if get!(thread, words[LEFT]) != 0 {
            emit::leave_out(thread, get!(thread, words[LEFT]), cause::CALL_TOO_LONG);
        }
    }
}
