//! Which socket a TLS call used: stamped into the thread's open frames while the call runs, so that
//! no descriptor has to be resolved afterwards.

use core::ffi::c_void;

use agent_ebpf::{Direction, FRAMES, Head, SEVERAL_SOCKETS, Socket, Thread, kind};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, generated},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};

use crate::{
    emit::{reserve, wake_flags},
    maps::{SOCKETS, THREADS, get, offset, opaque, stopped},
};

/// `TP_PROTO(struct sock *sk, int ret, int flags)`, 6.3 to 7.2.
#[btf_tracepoint(function = "sock_send_length")]
pub fn socket_send(ctx: BtfTracePointContext) -> i32 {
    used(&ctx)
}

/// `TP_PROTO(struct sock *sk, int ret, int flags)`, 6.3 to 7.2.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn socket_receive(ctx: BtfTracePointContext) -> i32 {
    used(&ctx)
}

const IPPROTO_TCP: u16 = 6;
const IPPROTO_MPTCP: u16 = 262;

#[inline(always)]
fn used(ctx: &BtfTracePointContext) -> i32 {
    if stopped() {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    // Every send and receive of the machine passes here: nearly all of them end at this lookup.
    let Some(thread) = THREADS.get_ptr_mut(&id) else {
        return 0;
    };
    // SAFETY: a map value.
    if unsafe { get!(thread, depth) } == 0 {
        return 0;
    }
    let transferred: i32 = ctx.arg(1);
    if transferred <= 0 {
        return 0;
    }
    let sk: *const c_void = ctx.arg(0);
    let protocol = read_u16(sk, offset!(sock_protocol));
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return 0;
    }
    // SAFETY: the verifier knows the argument as a socket.
    let cookie = unsafe { generated::bpf_get_socket_cookie(sk.cast_mut()) };
    stamp(thread, cookie);
    if SOCKETS.get_ptr(&cookie).is_none() && announce(sk, cookie, protocol) {
        let _ = SOCKETS.insert(&cookie, &1, 0);
    }
    0
}

/// Nested calls of one thread all end at this socket.
#[inline(always)]
fn stamp(thread: *mut Thread, cookie: u64) {
    let mut i = 0;
    while i < FRAMES {
        // SAFETY: a map value; i < FRAMES.
        unsafe {
            if i as u64 >= get!(thread, depth) {
                return;
            }
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

/// Sends the two ends of the socket. False if the ring is full: the next use tries again.
#[inline(always)]
fn announce(sk: *const c_void, cookie: u64, protocol: u16) -> bool {
    const AF_INET6: u16 = 10;
    let record: *mut Socket = reserve(size_of::<Socket>() as u64).cast();
    if record.is_null() {
        return false;
    }
    // SAFETY: `record` is a reservation of this size; every field is written.
    unsafe {
        (*record).head = Head {
            kind: kind::SOCKET,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).cookie = cookie;
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
    }
    true
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
fn read<const N: u32>(to: *mut [u8; 16], sk: *const c_void, offset: u64) {
    // SAFETY: as above; N <= 16.
    unsafe {
        let from = (sk as u64 + offset) as *const c_void;
        generated::bpf_probe_read_kernel(to.cast(), N, from);
    }
}
