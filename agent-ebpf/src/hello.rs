//! Which connections begin with TLS of which no probed function knows. Only what a socket sends first is looked at,
//! and only as many bytes of it as say what it is: both ends send a hello before anything else.
//!
//! No tracepoint has the bytes. But the thread that sends is in its system call, whose arguments name them: read
//! there as a uprobe would, without a byte of the kernel's own buffers.

use core::{
    ffi::c_void,
    mem::{MaybeUninit, offset_of},
};

use agent_ebpf::{Direction, HELLO_MAX, HELLO_MIN, Hello, Socket, control, kind, side};
use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_boot_ns, generated},
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};

use crate::{
    emit::{NO_WAKEUP, reserve_spare, wake_flags},
    filter::is_wanted,
    maps::{THREADS, control, get, offset, opaque, stopped},
    socket::{AF_INET6, IPPROTO_TCP, read},
};

/// `TP_PROTO(struct sock *sk, int ret, int flags)`, 6.3 to 7.2.
#[btf_tracepoint(function = "sock_send_length")]
pub fn hello(ctx: BtfTracePointContext) -> i32 {
    sent(ctx.arg(0), ctx.arg(1))
}

/// `int tcp_sendmsg(struct sock *sk, struct msghdr *msg, size_t size)`, where that tracepoint is missing.
#[fexit(function = "tcp_sendmsg")]
pub fn hello_tcp(ctx: FExitContext) -> i32 {
    sent(ctx.arg(0), ctx.arg(3))
}

/// Every send of the machine passes here: nearly all of them end at the second read.
#[inline(always)]
fn sent(sk: *const c_void, length: i32) -> i32 {
    if length < HELLO_MIN as i32 || stopped() || control(control::HELLOS) == 0 {
        return 0;
    }
    let length = length as u64;
    if !is_first(sk, length) || !is_asked_for() {
        return 0;
    }
    // All that is read from here on goes through these, else the stack would be too large.
    let mut words = MaybeUninit::<[u64; 2]>::uninit();
    let words: *mut u64 = words.as_mut_ptr().cast();
    if find_buffer(words) {
        // SAFETY: `find_buffer` has filled both.
        let (base, size) = unsafe { (words.read_volatile(), words.add(1).read_volatile()) };
        tell(words, sk, base, least(size, length));
    }
    0
}

/// Is it TCP, and did the socket send nothing before these bytes? What is acknowledged may include the SYN. The two are not read
/// at one moment: now and then a second send passes as well, whose bytes are judged like the first one's.
#[inline(always)]
fn is_first(sk: *const c_void, length: u64) -> bool {
    let mut word = MaybeUninit::<u64>::uninit();
    let word = word.as_mut_ptr();
    let at = |offset| sk as u64 + offset;
    if kernel::<2>(word, at(offset!(sock_protocol))) != u64::from(IPPROTO_TCP) {
        return false;
    }
    if kernel::<8>(word, at(offset!(tcp_bytes_acked))) > length + 1 {
        return false;
    }
    let end = kernel::<4>(word, at(offset!(tcp_write_seq)));
    let begin = kernel::<4>(word, at(offset!(tcp_snd_una)));
    u64::from((end as u32).wrapping_sub(begin as u32)) <= length + 1
}

/// Not by who is unwanted, nor where the library that greets is one whose functions are probed.
#[inline(always)]
fn is_asked_for() -> bool {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: a map value.
    let is_in_call = THREADS
        .get_ptr_mut(&id)
        .is_some_and(|thread| unsafe { get!(thread, depth) != 0 });
    !is_in_call && is_wanted(&id)
}

/// Where `struct msghdr` of user space has its buffers, and the size of a `struct iovec`.
pub const MSG_IOV: u64 = 16;
pub const IOVEC: u64 = 16;

/// The first buffer that the current system call sends, as a `struct iovec`: address and size. Where that is empty it
/// is the second: Erlang has one for a head of its own before all others.
#[inline(always)]
fn find_buffer(words: *mut u64) -> bool {
    const WRITE: u64 = 1;
    const WRITEV: u64 = 20;
    const SENDTO: u64 = 44;
    const SENDMSG: u64 = 46;
    const SENDMMSG: u64 = 307;
    let Some(regs) = registers(words) else {
        return false;
    };
    let base = register(words, regs, offset_of!(pt_regs, rsi));
    let vector = match register(words, regs, offset_of!(pt_regs, orig_rax)) {
        WRITE | SENDTO => {
            let size = register(words, regs, offset_of!(pt_regs, rdx));
            // SAFETY: two words of the caller's.
            unsafe {
                words.write_volatile(base);
                words.add(1).write_volatile(size);
            }
            return true;
        }
        WRITEV => base,
        SENDMSG | SENDMMSG => {
            if !user::<8>(words, base + MSG_IOV) {
                return false;
            }
            // SAFETY: as above.
            unsafe { words.read_volatile() }
        }
        _ => return false,
    };
    if !user::<16>(words, vector) {
        return false;
    }
    // SAFETY: as above.
    let is_empty = unsafe { words.add(1).read_volatile() } == 0;
    !is_empty || user::<16>(words, vector + IOVEC)
}

/// The registers with which the thread entered the kernel, at the top of its stack. Kernels with FRED (6.9) leave
/// two words free there; 64-bit code, which alone is looked at, has one segment in both.
#[inline(always)]
pub fn registers(word: *mut u64) -> Option<u64> {
    const STACK: u64 = 16 << 10;
    const USER_CODE: u64 = 0x33;
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let stack = kernel::<8>(word, task + offset!(task_stack));
    let top = stack + STACK - size_of::<pt_regs>() as u64;
    if register(word, top, offset_of!(pt_regs, cs)) & 0xffff == USER_CODE {
        return Some(top);
    }
    let top = top - 16;
    (register(word, top, offset_of!(pt_regs, cs)) & 0xffff == USER_CODE).then_some(top)
}

#[inline(always)]
pub fn register(word: *mut u64, regs: u64, at: usize) -> u64 {
    kernel::<8>(word, regs + at as u64)
}

/// As many bytes of the kernel's memory, 0 if they can't be read.
#[inline(always)]
pub fn kernel<const N: u32>(word: *mut u64, from: u64) -> u64 {
    // SAFETY: the helper fails on a wrong address and then leaves zeros; N <= 8.
    unsafe {
        word.write_volatile(0);
        generated::bpf_probe_read_kernel(word.cast(), N, from as *const c_void);
        word.read_volatile()
    }
}

/// As many bytes of the program's memory into `words`.
#[inline(always)]
pub fn user<const N: u32>(words: *mut u64, from: u64) -> bool {
    // SAFETY: the helper fails on a wrong address; N <= 16.
    unsafe { generated::bpf_probe_read_user(words.cast(), N, from as *const c_void) == 0 }
}

/// Sends the beginning of a handshake: all of a client's greeting, for its server's name; of a server's the kind
/// alone.
#[inline(always)]
fn tell(word: *mut u64, sk: *const c_void, base: u64, size: u64) {
    const HANDSHAKE: u64 = 22;
    const CLIENT: u64 = 1;
    const SERVER: u64 = 2;
    // SAFETY: a word of the caller's.
    unsafe { word.write_volatile(0) };
    if size < HELLO_MIN || !user::<{ HELLO_MIN as u32 }>(word, base) {
        return;
    }
    // SAFETY: as above.
    let head = unsafe { word.read_volatile() };
    // Kind, 3.0 to 3.4, length, kind of the message.
    let message = head >> 40;
    let is_hello = head & 0xffff == HANDSHAKE | 3 << 8
        && head >> 16 & 0xff <= 4
        && (message == CLIENT || message == SERVER);
    if !is_hello {
        return;
    }
    let mut length = HELLO_MIN;
    if message == CLIENT {
        // No byte behind the record: what follows may be sent early.
        let record = 5 + (head >> 24 & 0xff) * 256 + (head >> 32 & 0xff);
        length = least(least(record, size), HELLO_MAX - 1);
    }
    let record: *mut Hello = reserve_spare(size_of::<Hello>() as u64 + HELLO_MAX).cast();
    if record.is_null() {
        return;
    }
    // SAFETY: `record` is a reservation of this size; every field is written, and so are as many bytes behind
    // as it says.
    unsafe {
        let length = opaque(length) & (HELLO_MAX - 1);
        (*record).socket.head.kind = kind::HELLO;
        (*record).socket.head.direction = Direction::Sent as u16;
        (*record).socket.head.len = length as u32;
        let from = base as *const c_void;
        if generated::bpf_probe_read_user(record.add(1).cast(), length as u32, from) != 0 {
            generated::bpf_ringbuf_discard(record.cast(), NO_WAKEUP);
            return;
        }
        (*record).socket.head.time = bpf_ktime_get_boot_ns();
        (*record).pid_tgid = bpf_get_current_pid_tgid();
        describe(word, &raw mut (*record).socket, sk);
        // Which message it is says more.
        (*record).socket.side = side::UNKNOWN;
        generated::bpf_ringbuf_submit(record.cast(), wake_flags());
    }
}

/// The two ends, as `announce` says them, with less of the stack.
#[inline(always)]
pub unsafe fn describe(word: *mut u64, record: *mut Socket, sk: *const c_void) {
    let number = |offset| kernel::<2>(word, sk as u64 + offset) as u16;
    // SAFETY: `record` has room for one.
    unsafe {
        (*record).cookie = opaque(0);
        (*record).protocol = IPPROTO_TCP;
        (*record).local_port = number(offset!(sock_num));
        (*record).peer_port = u16::from_be(number(offset!(sock_dport)));
        (*record).family = number(offset!(sock_family));
        let (local, peer) = (&raw mut (*record).local, &raw mut (*record).peer);
        // Behind the four is old content of the ring: nobody looks at it.
        match (*record).family {
            AF_INET6 => {
                read::<16>(local, sk, offset!(sock_v6_rcv_saddr));
                read::<16>(peer, sk, offset!(sock_v6_daddr));
            }
            _ => {
                read::<4>(local, sk, offset!(sock_rcv_saddr));
                read::<4>(peer, sk, offset!(sock_daddr));
            }
        }
    }
}

#[inline(always)]
pub fn least(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}
