//! Go's calls. Inside of `Conn.Read` and `Conn.Write` there is one that is given the connection and the bytes, and
//! carries all of them. So one hit is a whole call, entry and return at once: nothing is kept in between, and it
//! does not matter that a goroutine's stack moves and its thread changes.
//!
//! They are made under the lock of their direction, so positions are as safe as elsewhere.

use core::ffi::c_void;

use agent_ebpf::{
    DETAIL, Direction, FRAME_SIZE, MOVED, REJOINED, Shape, Thread, control, counter, kind,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_boot_ns, generated},
    macros::uprobe,
    programs::ProbeContext,
};

use crate::{
    call::attach_cookie,
    emit,
    filter::{Admission, admit, admit_call},
    maps::{control, count, count_call, get, offset, opaque, stopped},
    socket,
};

/// One link for all such points of a file.
#[uprobe(multi)]
pub fn passed_multi(ctx: ProbeContext) -> u32 {
    let cookie = attach_cookie(ctx.as_ptr());
    passed(&ctx, cookie)
}

/// One perf event per point, each with its cookie (5.15).
#[uprobe]
pub fn passed_cookie(ctx: ProbeContext) -> u32 {
    let cookie = attach_cookie(ctx.as_ptr());
    passed(&ctx, cookie)
}

/// Without cookies (before 5.15) there is no detail in them either, so nobody knows the socket.
#[uprobe]
pub fn passed_read(ctx: ProbeContext) -> u32 {
    let cookie = agent_ebpf::cookie(0, Direction::Received, Shape::Passed);
    passed(&ctx, cookie)
}

#[uprobe]
pub fn passed_write(ctx: ProbeContext) -> u32 {
    let cookie = agent_ebpf::cookie(0, Direction::Sent, Shape::Passed);
    passed(&ctx, cookie)
}

#[uprobe]
pub fn begun_perf(ctx: ProbeContext) -> u32 {
    begun(&ctx, 0)
}

const DIRECTION: u64 = 1;

/// `memmove(to, from, n)` with the connection in rsi, or `writeRecordLocked(connection, kind, bytes, n, room)`.
/// Arguments are in rax, rbx, rcx, rdi, rsi.
#[inline(always)]
fn passed(ctx: &ProbeContext, cookie: u64) -> u32 {
    if stopped() {
        return 0;
    }
    count_call(cookie);
    let mut id = bpf_get_current_pid_tgid();
    let Some(thread) = admit_call(&id) else {
        return 0;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        // First: registers that are of no more use need not survive a helper call.
        note(thread, ctx, cookie);
        if is_again(thread, cookie) {
            return 0;
        }
        (*thread).passed = cookie;
        count(counter::ENTRIES, 1);
        count(counter::RETURNS, 1);
        if get!(thread, back) != 0 {
            emit::rejoin(thread, get!(thread, key.handle));
            (*thread).key.direction = (get!(thread, passed) & DIRECTION) as u32;
        }
        if get!(thread, passed) >> DETAIL != 0 && control(control::SOCKETS) != 0 {
            find_socket(thread, &mut id);
        }
        (*thread).buf = get!(thread, tail);
        (*thread).call.position = get!(thread, full);
        (*thread).call.pending = opaque(0);
        (*thread).call.cause = opaque(0);
        // A stream that begins here began before the probes, or was left and forgotten.
        (*thread).call.opened = get!(thread, born) | REJOINED;
        if get!(thread, full) > u64::MAX >> FRAME_SIZE {
            count(counter::UNREADABLE, 1);
        } else if get!(thread, full) != 0 {
            count(counter::SEEN, get!(thread, full));
            emit::call(thread);
        }
        (*thread).passed_at = bpf_ktime_get_boot_ns();
    }
    0
}

/// Keeps what the registers say where [`find_socket`] leaves it alone: `key`, the bytes in `tail`, their number in
/// `full`, and in `position` where a TCP connection's first method is.
#[inline(always)]
unsafe fn note(thread: *mut Thread, ctx: &ProbeContext, cookie: u64) {
    // SAFETY: the program's context, and a map value.
    unsafe {
        let regs = ctx.regs;
        let is_sent = cookie & DIRECTION != 0;
        // Both are loaded before one is chosen: a chosen register would be a computed offset into the context.
        let (sent, received) = (opaque((*regs).rax), opaque((*regs).rsi));
        (*thread).key.handle = if is_sent { sent } else { received };
        let (sent, received) = (opaque((*regs).rcx), opaque((*regs).rbx));
        (*thread).tail = if is_sent { sent } else { received };
        let (sent, received) = (opaque((*regs).rdi), opaque((*regs).rcx));
        (*thread).full = if is_sent { sent } else { received };
        let distance = (cookie >> DETAIL) as u32 as i32 as i64;
        (*thread).position = (*regs).rip.wrapping_add_signed(distance);
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = (cookie & DIRECTION) as u32;
        // The detail is nobody else's business.
        (*thread).call.cookie = cookie & ((1 << DETAIL) - 1);
        (*thread).socket = opaque(0);
    }
}

/// Two links of one point run one right after the other. While probes move both are there for more than this.
const OVERLAP: u64 = 1_000_000;

/// Is this the same trap again, by the second link on this instruction while the probes move?
#[inline(always)]
unsafe fn is_again(thread: *mut Thread, cookie: u64) -> bool {
    // SAFETY: a map value.
    unsafe {
        if get!(thread, passed) ^ cookie != MOVED
            || bpf_ktime_get_boot_ns() - get!(thread, passed_at) > OVERLAP
        {
            return false;
        }
        (*thread).passed = opaque(0);
        true
    }
}

/// The handshake is called, once for each connection.
#[inline(always)]
pub fn begun(ctx: &ProbeContext, cookie: u64) -> u32 {
    if stopped() {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    let Admission::Wanted(thread) = admit(&id) else {
        return 0;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        (*thread).key.handle = (*ctx.regs).rax;
        (*thread).key.born = get!(thread, born);
        (*thread).call.cookie = cookie;
        emit::opened(thread, kind::OPENED);
    }
    0
}

/// `tls.Conn` begins with a `net.Conn`: its methods and its object. Those are a table whose own fields come first.
const OBJECT: u64 = 8;
const METHODS: u64 = 24;
/// `internal/poll.FD` begins with a lock, whose lowest bit says that it is closed; then the descriptor.
const CLOSED: u64 = 1;
const DESCRIPTOR: u64 = 16;

/// The socket of the connection in `key`, by what that is made of: into `thread.socket`, if it is a TCP connection
/// and is not being closed. Its first method tells: such connections alone have the one at `position`.
///
/// `buf` and `call` are free: they are set afterwards. Everything is read into `word`: a slot of the stack, because
/// with a map as target the kernel's hardened copy takes twice as long.
#[inline(always)]
unsafe fn find_socket(thread: *mut Thread, word: &mut u64) {
    if offset!(task_files) == 0 {
        return;
    }
    let word: *mut u64 = word;
    // SAFETY: map values; the helpers fail on wrong addresses, and read eight bytes into eight.
    unsafe {
        macro_rules! user {
            ($at:expr) => {
                if generated::bpf_probe_read_user(word.cast(), 8, ($at) as *const c_void) != 0 {
                    return;
                }
            };
        }
        macro_rules! kernel {
            ($at:expr) => {
                if generated::bpf_probe_read_kernel(word.cast(), 8, ($at) as *const c_void) != 0 {
                    return;
                }
            };
        }
        user!(get!(thread, key.handle));
        user!(word.read_volatile() + METHODS);
        if word.read_volatile() != get!(thread, position) {
            return;
        }
        user!(get!(thread, key.handle) + OBJECT);
        user!(word.read_volatile());
        (*thread).call.cause = word.read_volatile();
        user!(word.read_volatile() + DESCRIPTOR);
        (*thread).call.opened = word.read_volatile();

        kernel!(bpf_get_current_task() + offset!(task_files));
        kernel!(word.read_volatile() + offset!(files_fdt));
        (*thread).buf = word.read_volatile();
        kernel!(word.read_volatile() + offset!(fdtable_max_fds));
        if get!(thread, call.opened) >= word.read_volatile() & u64::from(u32::MAX) {
            return;
        }
        kernel!(get!(thread, buf) + offset!(fdtable_fd));
        kernel!(word.read_volatile() + get!(thread, call.opened) * 8);
        // A file is a socket's if the socket says so, too.
        (*thread).call.opened = word.read_volatile();
        kernel!(word.read_volatile() + offset!(file_private_data));
        (*thread).buf = word.read_volatile();
        kernel!(word.read_volatile() + offset!(socket_file));
        if word.read_volatile() == 0 || word.read_volatile() != get!(thread, call.opened) {
            return;
        }
        kernel!(get!(thread, buf) + offset!(socket_sk));
        (*thread).call.opened = word.read_volatile();
        // Only now: as long as it is not being closed, the descriptor is its own.
        user!(get!(thread, call.cause));
        if word.read_volatile() & CLOSED != 0 {
            return;
        }
        socket::met(thread, get!(thread, call.opened) as *const c_void);
    }
}
