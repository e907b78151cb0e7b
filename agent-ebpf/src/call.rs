//! The entry and the return of a TLS library's read and write functions.
//!
//! The bytes are taken at the return, when their number is known: a write may be partial or refused, a
//! read fills its buffer. Until then the call is a frame of its thread, known by its stack pointer.

use core::ffi::c_void;

use agent_ebpf::{
    Direction, FRAME_DONE, FRAME_INNER, FRAME_SIZE, FRAMES, Frame, MOVED, PEEK, Shape, Thread,
    cause, counter, kind, unmatched,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, generated},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};

use crate::{
    emit,
    filter::{Admission, admit, admit_call},
    maps::{THREADS, count, count_call, get, hide, offset, opaque, stopped},
};

/// One link for all points of a file (uprobe_multi, 6.6): the cookie says what each point is.
#[uprobe(multi)]
pub fn entry_multi(ctx: ProbeContext) -> u32 {
    enter::<false>(&ctx, || attach_cookie(ctx.as_ptr()));
    0
}

#[uretprobe(multi)]
pub fn return_multi(ctx: RetProbeContext) -> u32 {
    leave(&ctx)
}

/// One link for entry and return (session links, 6.13). What the entry returns decides whether the call
/// gets a return probe: only one whose frame was opened. aya's attribute would return 0 in any case.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe.multi")]
pub extern "C" fn call_session(ctx: *mut c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    if is_return(&ctx) {
        return leave(&RetProbeContext::new(ctx.as_ptr()));
    }
    if enter::<true>(&ctx, || attach_cookie(ctx.as_ptr())) {
        WITH_RETURN
    } else {
        WITHOUT_RETURN
    }
}

pub const WITH_RETURN: u32 = 0;
pub const WITHOUT_RETURN: u32 = 1;

/// The helper says where the probe is; at the return the caller has control again.
#[inline(always)]
pub fn is_return(ctx: &ProbeContext) -> bool {
    // SAFETY: the program's own context.
    unsafe { generated::bpf_get_func_ip(ctx.as_ptr()) != (*ctx.regs).rip }
}

/// One perf event per point, each with its cookie (5.15).
#[uprobe]
pub fn entry_cookie(ctx: ProbeContext) -> u32 {
    enter::<false>(&ctx, || attach_cookie(ctx.as_ptr()));
    0
}

/// The same without cookies: the program says what the point is, and nobody knows in which file.
macro_rules! perf_entry {
    ($name:ident, $direction:ident, $shape:ident) => {
        #[uprobe]
        pub fn $name(ctx: ProbeContext) -> u32 {
            enter::<false>(&ctx, || {
                agent_ebpf::cookie(0, Direction::$direction, Shape::$shape)
            });
            0
        }
    };
}
perf_entry!(entry_read, Received, Returned);
perf_entry!(entry_read_fourth, Received, OutFourth);
perf_entry!(entry_read_peekable, Received, Peekable);
perf_entry!(entry_write, Sent, Returned);
perf_entry!(entry_write_fourth, Sent, OutFourth);
perf_entry!(entry_write_fifth, Sent, OutFifth);
perf_entry!(entry_handshake, Received, Handshake);
perf_entry!(entry_sendfile, Sent, Sendfile);
perf_entry!(entry_flush, Sent, Flushed);

#[uretprobe]
pub fn return_perf(ctx: RetProbeContext) -> u32 {
    leave(&ctx)
}

/// `SSL_new` has no entry program: its result says all.
#[uretprobe(multi)]
pub fn created_multi(ctx: RetProbeContext) -> u32 {
    created_alone(&ctx)
}

/// A session, too: a return probe is a return probe, whatever the function does.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe.multi")]
pub extern "C" fn created_session(ctx: *mut c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    let cookie = attach_cookie(ctx.as_ptr());
    if is_return(&ctx) {
        return created(&RetProbeContext::new(ctx.as_ptr()), cookie);
    }
    if stopped() {
        return WITHOUT_RETURN;
    }
    count_call(cookie);
    let Admission::Wanted(thread) = admit(&bpf_get_current_pid_tgid()) else {
        return WITHOUT_RETURN;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        if is_other_stack_open(thread, (*ctx.regs).rsp) {
            skip(thread, 0, cookie);
            return WITHOUT_RETURN;
        }
    }
    WITH_RETURN
}

#[uretprobe]
pub fn created_cookie(ctx: RetProbeContext) -> u32 {
    created_alone(&ctx)
}

#[uretprobe]
pub fn created_perf(ctx: RetProbeContext) -> u32 {
    created(&ctx, 0)
}

#[inline(always)]
pub fn attach_cookie(ctx: *mut c_void) -> u64 {
    // SAFETY: the program's own context.
    unsafe { generated::bpf_get_attach_cookie(ctx) }
}

const DIRECTION: u64 = 1;
const SHAPE: u64 = 6;
/// The bit of the shapes whose bytes are in no buffer, most of which have none.
const HANDSHAKE: u64 = (Shape::Handshake as u64) << 1;
const SENDFILE: u64 = (Shape::Sendfile as u64) << 1;
const PEEKABLE: u64 = (Shape::Peekable as u64) << 1;
/// The bit that [`Shape::Flushed`] alone has, of the shapes that open a frame.
const FLUSHED: u64 = (Shape::Flushed as u64) << 1 & !HANDSHAKE;

/// Opens a frame. False: this call has none, and its return is of no interest. Only a `SESSION` can do
/// without its return probe. The cookie is asked for a second time late: until then it would take a register.
#[inline(always)]
fn enter<const SESSION: bool>(ctx: &ProbeContext, cookie: impl Fn() -> u64) -> bool {
    if stopped() {
        return false;
    }
    count_call(cookie());
    let id = bpf_get_current_pid_tgid();
    let Some(thread) = admit_call(&id) else {
        return false;
    };
    let cookie = cookie();
    // SAFETY: the program's context, and a map value.
    unsafe {
        if get!(thread, back) != 0 {
            (*thread).call.cookie = opaque(cookie);
            emit::rejoin(thread, ctx.arg(0).unwrap_or(0));
        }
        let depth = get!(thread, depth);
        if depth == 0 {
            count(counter::ENTRIES, 1);
            (*thread).depth = 1;
            open(ctx, &raw mut (*thread).frames[0], cookie, 0);
            true
        } else {
            enter_nested::<SESSION>(ctx, thread, cookie)
        }
    }
}

/// A call while others of this thread are open: TLS in TLS, one function of the library inside
/// another, or leftovers of calls that never returned.
#[inline(always)]
unsafe fn enter_nested<const SESSION: bool>(
    ctx: &ProbeContext,
    thread: *mut Thread,
    cookie: u64,
) -> bool {
    // SAFETY: the caller's.
    unsafe {
        if SESSION && is_other_stack_open(thread, (*ctx.regs).rsp) {
            count(counter::ENTRIES, 1);
            count(counter::UNMATCHED + unmatched::OTHER_STACK, 1);
            if cookie & (SHAPE | HANDSHAKE) != HANDSHAKE {
                skip(thread, ctx.arg(0).unwrap_or(0), cookie);
            }
            return false;
        }
        let sp = (*ctx.regs).rsp;
        let handle = ctx.arg::<u64>(0).unwrap_or(0);
        let mut slot = get!(thread, depth);
        let mut inner = 0;
        let mut reused = false;
        let mut i = 0;
        while i < FRAMES {
            if !reused && (i as u64) < get!(thread, depth) {
                let frame = &raw const (*thread).frames[i];
                if get!(frame, sp) == sp {
                    slot = i as u64;
                    reused = true;
                } else if get!(frame, handle) == handle
                    && get!(frame, flags) & DIRECTION == cookie & DIRECTION
                {
                    // Its bytes were counted when the handle took them.
                    if get!(frame, cookie) & FLUSHED != 0 {
                        return false;
                    }
                    inner = FRAME_INNER;
                }
            }
            i += 1;
        }
        // Free between two calls; registers across the helper calls below would be too many.
        (*thread).tail = inner;
        if reused {
            let frame = &raw const (*thread).frames[(slot & 3) as usize];
            // The same trap, run again for a second link on this instruction while the probes move. Each link
            // has its return, and the first one takes the frame: who opened it decides nothing, for its link
            // may be closed inside the call.
            if get!(frame, cookie) ^ cookie == MOVED {
                return true;
            }
            // Kernels with session links say which files are one: no other link can be a second one.
            if !SESSION && get!(frame, ip) == (*ctx.regs).rip && get!(frame, cookie) != cookie {
                count(counter::DUPLICATE, 1);
            }
            // Two calls can't be open at one stack pointer: this one and those inside it are gone.
            count(
                counter::UNMATCHED + unmatched::ABANDONED,
                get!(thread, depth) - slot,
            );
        } else if slot >= FRAMES as u64 {
            // The innermost one is gone if it lies deeper in the stack than we are. Another stack
            // (a coroutine's) is a wrong guess that costs one call, counted.
            slot = FRAMES as u64 - 1;
            if get!(thread, frames[FRAMES - 1].sp) > sp {
                count(counter::ENTRIES, 1);
                count(counter::UNMATCHED + unmatched::TOO_DEEP, 1);
                return false;
            }
            count(counter::UNMATCHED + unmatched::ABANDONED, 1);
        }
        if get!(thread, tail) == 0 {
            count(counter::ENTRIES, 1);
        }
        (*thread).depth = slot + 1;
        let frame = &raw mut (*thread).frames[(opaque(slot) & 3) as usize];
        open(ctx, frame, cookie, get!(thread, tail));
        true
    }
}

/// Another call this near below an open one is on the same stack: TLS in TLS, 5.6 KiB deep in curl. Two
/// calls on different stacks are never that near: the upper stack goes on below its call, with more than this
/// for the library alone, which needs 5 KiB from `SSL_write` to the socket.
const NEST: u64 = 8 << 10;
/// What lies this far below the main thread's first frame is its stack: the kernel keeps mappings 128 MiB
/// away. There calls nest as deep as they like: JavaScript writes from a callback of a read, 21 KiB deeper.
const MAIN_STACK: u64 = 64 << 20;

/// Is a call of this thread open on another stack, as coroutines leave it?
///
/// The kernel keeps the return probes of a thread in the order of one stack. A second one on a stack above
/// makes it forget the first, one below makes it take the first return for the second: either way a program
/// is killed (SIGILL). So the open calls are always on one stack. Those found dead are dropped here.
#[inline(always)]
pub unsafe fn is_other_stack_open(thread: *mut Thread, sp: u64) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let mut i = 0;
        while i < FRAMES {
            let above = get!(thread, frames[i].sp).wrapping_sub(sp);
            if (i as u64) < get!(thread, depth) && above <= NEST {
                return false;
            }
            i += 1;
        }
        // The open calls are on one stack, so one of them speaks for all.
        let top = main_stack_top(thread);
        let is_on_main = |sp: u64| top.wrapping_sub(sp) < MAIN_STACK;
        if is_on_main(sp) && is_on_main(get!(thread, frames[0].sp)) {
            return false;
        }
        let mut i = 0;
        while i < FRAMES {
            let depth = get!(thread, depth);
            if depth == 0 {
                return false;
            }
            (*thread).depth = depth - 1;
            if returns_to_trampoline(thread) {
                (*thread).depth = get!(thread, depth) + 1;
                return true;
            }
            if get!(frame(thread), flags) & FRAME_INNER == 0 {
                count(counter::UNMATCHED + unmatched::ABANDONED, 1);
            }
            i += 1;
        }
    }
    false
}

/// Where the first frame of the process began; 0 if that is not known.
#[inline(always)]
unsafe fn main_stack_top(thread: *mut Thread) -> u64 {
    if offset!(mm_start_stack) == 0 {
        return 0;
    }
    // SAFETY: kernel memory is read by the helper, which fails on a wrong address; `position` is of no use
    // between two calls.
    unsafe {
        let to: *mut c_void = (&raw mut (*hide(thread)).position).cast();
        let mm = (bpf_get_current_task() + offset!(task_mm)) as *const c_void;
        if generated::bpf_probe_read_kernel(to, 8, mm) != 0 {
            return 0;
        }
        let start = (get!(thread, position) + offset!(mm_start_stack)) as *const c_void;
        if generated::bpf_probe_read_kernel(to, 8, start) != 0 {
            return 0;
        }
        get!(thread, position)
    }
}

/// Will the call behind the open ones still return? Until then the word at its stack pointer is the address
/// of the kernel's trampoline, which is the first of a page of its own. Of what else may be there, from the
/// program's own code or by a later use of the stack, hardly anything is the start of a page; and if, or if
/// the stack is away, "yes" costs some calls their capture, while "no" could cost the program its life.
#[inline(always)]
unsafe fn returns_to_trampoline(thread: *mut Thread) -> bool {
    const PAGE: u64 = 4096;
    // SAFETY: a map value; `position` is of no use between two calls.
    unsafe {
        let from = get!(frame(thread), sp) as *const c_void;
        let to = (&raw mut (*hide(thread)).position).cast();
        if generated::bpf_probe_read_user(to, 8, from) != 0 {
            return true;
        }
        let word = get!(thread, position);
        word != 0 && word % PAGE == 0
    }
}

/// Says that nobody sees this call.
#[inline(always)]
pub unsafe fn skip(thread: *mut Thread, handle: u64, cookie: u64) {
    // SAFETY: a map value.
    unsafe {
        (*thread).key.handle = handle;
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = Direction::Received as u32;
        (*thread).call.cookie = cookie;
        emit::unseen(thread, kind::UNSEEN);
    }
}

#[inline(always)]
unsafe fn open(ctx: &ProbeContext, frame: *mut Frame, cookie: u64, inner: u64) {
    // SAFETY: the caller's.
    unsafe {
        (*frame).sp = (*ctx.regs).rsp;
        (*frame).ip = (*ctx.regs).rip;
        (*frame).handle = ctx.arg(0).unwrap_or(0);
        (*frame).buf = ctx.arg(1).unwrap_or(0);
        // Both are loaded before one is chosen: a chosen register would be a computed offset into the
        // context, which the verifier refuses.
        let fourth = opaque(ctx.arg(3).unwrap_or(0));
        let fifth = opaque(ctx.arg(4).unwrap_or(0));
        (*frame).out = if cookie & SHAPE == (Shape::OutFifth as u64) << 1 {
            fifth
        } else {
            fourth
        };
        (*frame).cookie = opaque(cookie);
        (*frame).socket = opaque(0); // zeros side by side would be a call of `memset`
        // Sizes above 2^48 don't exist; a library may pass one all the same.
        let size = ctx.arg::<u64>(2).unwrap_or(0) & (u64::MAX >> FRAME_SIZE);
        let mut what = cookie & (DIRECTION | SHAPE | HANDSHAKE);
        // From here on it is a read, or a call that carries nothing.
        if what & !DIRECTION == PEEKABLE {
            what = what & DIRECTION | (fourth & PEEK) * (HANDSHAKE / PEEK);
        }
        (*frame).flags = what | inner | size << FRAME_SIZE;
    }
}

/// Takes the frame of the returning call and sends its bytes.
#[inline(always)]
fn leave(ctx: &RetProbeContext) -> u32 {
    if stopped() {
        return 0;
    }
    let mut id = bpf_get_current_pid_tgid();
    let Some(thread) = THREADS.get_ptr_mut(&id) else {
        return 0;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        // `ret` has taken the return address off the stack.
        if !close(thread, (*ctx.regs).rsp - 8) {
            return 0;
        }
        if get!(frame(thread), flags) & FRAME_INNER == 0 {
            count(counter::RETURNS, 1);
        }
        if get!(frame(thread), flags) & FRAME_DONE != 0 {
            return 0;
        }
        take(thread);
        if ctx.ret::<i32>() <= 0 || get!(frame(thread), flags) & HANDSHAKE != 0 {
            if get!(frame(thread), flags) & (SHAPE | HANDSHAKE) == SENDFILE && ctx.ret::<i64>() > 0
            {
                send_file(thread, ctx.ret());
            } else {
                emit::touch(thread);
            }
            return 0;
        }
        if get!(frame(thread), flags) & SHAPE == 0 {
            (*thread).call.position = u64::from(ctx.ret::<i32>() as u32);
        } else {
            // Only now: at a failure it is an uninitialised slot of the caller's stack.
            let out = get!(frame(thread), out) as *const c_void;
            // To the stack: with a map as target the kernel's hardened copy takes twice as long. Where the
            // id was, which is of no more use: another slot would be one too many.
            if generated::bpf_probe_read_user((&raw mut id).cast(), 8, out) != 0 {
                count(counter::UNREADABLE, 1);
                return 0;
            }
            (*thread).call.position = id;
        }
        if get!(thread, call.position) == 0 {
            return 0;
        }
        // What a library stores is its own affair; what we count is not. A huge number would spoil the
        // ledger of everybody.
        if get!(thread, call.position) > get!(frame(thread), flags) >> FRAME_SIZE {
            count(counter::UNREADABLE, 1);
            emit::unseen(thread, kind::SENSELESS);
            return 0;
        }
        if get!(frame(thread), flags) & FRAME_INNER != 0 {
            finish_outer(thread);
        }
        count(counter::SEEN, get!(thread, call.position));
        emit::call(thread);
    }
    0
}

/// Closes the frame with this stack pointer, and those inside of it. False: there is none.
#[inline(always)]
pub unsafe fn close(thread: *mut Thread, sp: u64) -> bool {
    // SAFETY: a map value.
    unsafe {
        let depth = get!(thread, depth);
        if depth == 0 {
            return false;
        }
        if depth == 1 {
            if get!(thread, frames[0].sp) != sp {
                return false;
            }
            (*thread).depth = 0;
            return true;
        }
        let slot = find(thread, sp);
        if slot >= FRAMES as u64 {
            return false;
        }
        // Calls opened after this one that are still open will never return.
        let abandoned = get!(thread, depth) - 1 - slot;
        (*thread).depth = slot;
        if abandoned != 0 {
            count(counter::UNMATCHED + unmatched::ABANDONED, abandoned);
        }
    }
    true
}

/// Bytes of a file, which no buffer of the program ever held.
#[inline(always)]
unsafe fn send_file(thread: *mut Thread, length: u64) {
    // SAFETY: a map value.
    unsafe {
        if length > get!(frame(thread), out) || length > u64::MAX >> FRAME_SIZE {
            count(counter::UNREADABLE, 1);
            return;
        }
        (*thread).call.position = length;
        count(counter::SEEN, length);
        emit::unbuffered(thread, cause::SENDFILE);
    }
}

/// The frame that was just closed: the one behind those that are still open.
#[inline(always)]
pub unsafe fn frame(thread: *mut Thread) -> *mut Frame {
    // SAFETY: a map value; the mask keeps the index below FRAMES.
    unsafe { &raw mut (*hide(thread)).frames[(opaque(get!(thread, depth)) & 3) as usize] }
}

/// The same where no entry program has counted the call.
#[inline(always)]
fn created_alone(ctx: &RetProbeContext) -> u32 {
    if stopped() {
        return 0;
    }
    let cookie = attach_cookie(ctx.as_ptr());
    count_call(cookie);
    created(ctx, cookie)
}

/// A new object at an address that a freed one may have had: its streams begin here.
#[inline(always)]
fn created(ctx: &RetProbeContext, cookie: u64) -> u32 {
    if stopped() {
        return 0;
    }
    let handle: u64 = ctx.ret();
    if handle == 0 {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    let Admission::Wanted(thread) = admit(&id) else {
        return 0;
    };
    // SAFETY: a map value.
    unsafe {
        (*thread).key.handle = handle;
        (*thread).key.born = get!(thread, born);
        (*thread).call.cookie = cookie;
        // Here and not in the hot programs: a log line takes stack that they don't have.
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!(ctx, "handle {:x} of process {}", handle, id >> 32);
        emit::opened(thread, kind::OPENED);
    }
    0
}

/// The innermost frame with this stack pointer, [`FRAMES`] if there is none.
#[inline(always)]
unsafe fn find(thread: *const Thread, sp: u64) -> u64 {
    let mut slot = FRAMES as u64;
    let mut i = 0;
    while i < FRAMES {
        // SAFETY: a map value; i < FRAMES.
        unsafe {
            if (i as u64) < get!(thread, depth) && get!(thread, frames[i].sp) == sp {
                slot = i as u64;
            }
        }
        i += 1;
    }
    slot
}

/// Moves what the frame says into the thread, where the copy works: two map values at a time would
/// not fit into the registers that survive a helper call.
#[inline(always)]
unsafe fn take(thread: *mut Thread) {
    // SAFETY: a map value.
    unsafe {
        let frame = frame(thread);
        (*thread).key.handle = get!(frame, handle);
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = (get!(frame, flags) & DIRECTION) as u32;
        (*thread).buf = get!(frame, buf);
        (*thread).call.cookie = get!(frame, cookie);
        (*thread).socket = get!(frame, socket);
        (*thread).call.pending = opaque(0);
        (*thread).call.cause = opaque(0);
        (*thread).call.opened = opaque(0);
    }
}

/// The bytes are delivered by the inner call: those of the outer ones are the same.
#[inline(always)]
unsafe fn finish_outer(thread: *mut Thread) {
    let mut i = 0;
    while i < FRAMES {
        // SAFETY: a map value; i < FRAMES.
        unsafe {
            let frame = &raw mut (*thread).frames[i];
            if (i as u64) < get!(thread, depth)
                && get!(frame, handle) == get!(thread, key.handle)
                && get!(frame, flags) & DIRECTION == u64::from(get!(thread, key.direction))
            {
                (*frame).flags = get!(frame, flags) | FRAME_DONE;
            }
        }
        i += 1;
    }
}
