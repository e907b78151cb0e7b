//! rustls, whose records are the calls: one `MessageEncrypter::encrypt` or `MessageDecrypter::decrypt` each.
//!
//! ```text
//! fn encrypt(&mut self, msg: OutboundPlainMessage, seq: u64) -> Result<OutboundOpaqueMessage, Error>
//! fn decrypt(&mut self, msg: InboundOpaqueMessage, seq: u64) -> Result<InboundPlainMessage, Error>
//! ```
//!
//! Neither names its connection. Its handle is the encrypter: a number 0 says that the object is new, whoever
//! had its address before. Who decrypts calls from the record layer, which holds both objects side by side and
//! whose address is in a register that calls preserve; it is found there, and believed only if each word of it
//! agrees: the object that is called, the table that led to the probe, the other table's place, the number.
//! Where it is not found the decrypter is a handle of its own: one direction, joined to nothing.
//!
//! What is encrypted is known at the entry, and can't be partial or refused: rustls has no connection left if
//! that fails. What was decrypted is known at the return, without its padding.

use core::ffi::c_void;

use agent_ebpf::{
    Direction, FRAME_SIZE, FRAMES, MOVED, PIECES_MAX, RECORD_LAYER, SEALED_MAX, Shape,
    TABLES_APART, Thread, counter, kind, unmatched,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, generated},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};

use crate::{
    call::{self, attach_cookie},
    emit,
    filter::admit_call,
    maps::{THREADS, count, count_call, get, hide, opaque, stopped},
};

#[uprobe(multi)]
pub fn encrypt_multi(ctx: ProbeContext) -> u32 {
    encrypt(&ctx, || attach_cookie(ctx.as_ptr()))
}

#[uprobe]
pub fn encrypt_cookie(ctx: ProbeContext) -> u32 {
    encrypt(&ctx, || attach_cookie(ctx.as_ptr()))
}

#[uprobe]
pub fn encrypt_perf(ctx: ProbeContext) -> u32 {
    encrypt(&ctx, || ENCRYPT)
}

#[uprobe(multi)]
pub fn decrypt_multi(ctx: ProbeContext) -> u32 {
    let cookie = attach_cookie(ctx.as_ptr());
    enter::<false>(&ctx, cookie);
    0
}

#[uprobe]
pub fn decrypt_cookie(ctx: ProbeContext) -> u32 {
    let cookie = attach_cookie(ctx.as_ptr());
    enter::<false>(&ctx, cookie);
    0
}

#[uprobe]
pub fn decrypt_perf(ctx: ProbeContext) -> u32 {
    enter::<false>(&ctx, DECRYPT);
    0
}

#[uretprobe(multi)]
pub fn decrypted_multi(ctx: RetProbeContext) -> u32 {
    leave(&ctx)
}

#[uretprobe]
pub fn decrypted_perf(ctx: RetProbeContext) -> u32 {
    leave(&ctx)
}

/// Entry and return in one, as `call_session`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe.multi")]
pub extern "C" fn decrypt_session(ctx: *mut c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    if call::is_return(&ctx) {
        return leave(&RetProbeContext::new(ctx.as_ptr()));
    }
    let cookie = attach_cookie(ctx.as_ptr());
    if enter::<true>(&ctx, cookie) {
        call::WITH_RETURN
    } else {
        call::WITHOUT_RETURN
    }
}

const ENCRYPT: u64 = agent_ebpf::cookie(0, Direction::Sent, Shape::Encrypted);
const DECRYPT: u64 = agent_ebpf::cookie(0, Direction::Received, Shape::Decrypted);

/// The tag of a result without an error is behind those of all errors, or the last one that there is: the compiler
/// chooses. Those that `decrypt` can return are not above this.
const ERRORS_MAX: u64 = 0x12;
/// A message's type.
const APPLICATION_DATA: u64 = 3;
/// Bytes before the ciphertext: a nonce of TLS 1.2, if there is one.
const NONCE: u64 = 8;
/// Words of [`Thread::words`] when they are an `OutboundPlainMessage`. `CHUNKS` is 0 if there is one chunk, and
/// the other words are its address and length.
const CHUNKS: usize = 0;
const COUNT: usize = 1;
const START: usize = 2;
const END: usize = 3;
const SENT_TYPE: usize = 4;
/// Where one of the chunks goes then.
const CHUNK: usize = 5;
/// Words when they are a `Result<InboundPlainMessage, Error>`.
const TAG: usize = 0;
const PLAINTEXT: usize = 1;
const LENGTH: usize = 2;
const RECEIVED_TYPE: usize = 3;
/// Words when they are a record layer from [`RECORD_LAYER`] on: each object with its table, how many records
/// one key is good for, how many were sent and received with it.
const ENCRYPTER: usize = 0;
const DECRYPTER: usize = 2;
const WRITTEN: usize = 5;
const READ: usize = 6;
/// Where a table has its first method, and how far behind a function's entry a probe of it can be.
const METHOD: u64 = 24;
const DISTANCE: u64 = 12;

/// Reads words of the program's memory into the thread.
#[inline(always)]
unsafe fn read<const WORDS: u32>(thread: *mut Thread, at: usize, from: u64) -> bool {
    // SAFETY: inside of `words`, as each caller's constants say; the helper fails on a wrong address.
    unsafe {
        let to = (&raw mut (*hide(thread)).words[at]).cast();
        generated::bpf_probe_read_user(to, WORDS * 8, from as *const c_void) == 0
    }
}

#[inline(always)]
fn encrypt(ctx: &ProbeContext, cookie: impl Fn() -> u64) -> u32 {
    if stopped() {
        return 0;
    }
    count_call(cookie());
    let id = bpf_get_current_pid_tgid();
    let Some(thread) = admit_call(&id) else {
        return 0;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        let (encrypter, number) = (ctx.arg(1).unwrap_or(0), ctx.arg(3).unwrap_or(0));
        let cookie = cookie();
        // The same trap, run again for a second link on this instruction while the probes move. By one link it is
        // another encrypter at the same address, whose record has the same number.
        let is_same = get!(thread, sealed[0]) == encrypter && get!(thread, sealed[1]) == number;
        if is_same && get!(thread, sealed[2]) ^ cookie == MOVED {
            return 0;
        }
        (*thread).sealed[2] = opaque(cookie);
        (*thread).sealed[0] = opaque(encrypter);
        (*thread).sealed[1] = opaque(number);
        count(counter::ENTRIES, 1);
        count(counter::RETURNS, 1);
        if !read::<5>(thread, CHUNKS, ctx.arg(2).unwrap_or(0)) {
            count(counter::UNREADABLE, 1);
            return 0;
        }
        let cookie = get!(thread, sealed[2]);
        name(thread, get!(thread, sealed[0]), Direction::Sent, cookie);
        if get!(thread, sealed[1]) == 0 {
            emit::opened(thread, kind::OPENED);
        }
        if get!(thread, words[SENT_TYPE]) & 0xff != APPLICATION_DATA {
            begin(thread, Direction::Sent, 0);
            emit::touch(thread);
            return 0;
        }
        send(thread);
    }
    0
}

/// Says whose call it is.
#[inline(always)]
unsafe fn name(thread: *mut Thread, handle: u64, direction: Direction, cookie: u64) {
    // SAFETY: a map value.
    unsafe {
        (*thread).key.handle = handle;
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = direction as u32;
        (*thread).call.cookie = cookie;
        (*thread).socket = opaque(0);
        if get!(thread, back) != 0 {
            emit::rejoin(thread, handle);
        }
    }
}

/// Says how many bytes it has.
#[inline(always)]
unsafe fn begin(thread: *mut Thread, direction: Direction, length: u64) {
    // SAFETY: a map value.
    unsafe {
        (*thread).key.direction = direction as u32;
        (*thread).call.position = length;
        (*thread).call.pending = opaque(0);
        (*thread).call.cause = opaque(0);
        (*thread).call.opened = opaque(0);
    }
}

/// Sends the message in `words`.
#[inline(always)]
unsafe fn send(thread: *mut Thread) {
    // SAFETY: a map value.
    unsafe {
        let is_one = get!(thread, words[CHUNKS]) == 0;
        let length = if is_one {
            get!(thread, words[START])
        } else {
            get!(thread, words[END]).wrapping_sub(get!(thread, words[START]))
        };
        if length > SEALED_MAX {
            count(counter::UNREADABLE, 1);
            return;
        }
        if length == 0 {
            return;
        }
        begin(thread, Direction::Sent, length);
        count(counter::SEEN, length);
        if is_one {
            (*thread).buf = get!(thread, words[COUNT]);
            emit::record(thread);
            return;
        }
        if !emit::start(thread) {
            return;
        }
        // What is left of it.
        (*thread).words[END] = get!(thread, call.position);
        let mut i = 0;
        while i < PIECES_MAX {
            if i >= get!(thread, words[COUNT]) || get!(thread, words[END]) == 0 {
                break;
            }
            let at = get!(thread, words[CHUNKS]) + i * 16;
            if !read::<2>(thread, CHUNK, at) {
                break;
            }
            i += 1;
            // Bytes of the chunks before this message's.
            let skipped = get!(thread, words[START]);
            let size = get!(thread, words[CHUNK + 1]);
            if skipped >= size {
                (*thread).words[START] = skipped - size;
                continue;
            }
            (*thread).words[START] = opaque(0);
            (*thread).buf = get!(thread, words[CHUNK]) + skipped;
            let mut size = size - skipped;
            if size > get!(thread, words[END]) {
                size = get!(thread, words[END]);
            }
            (*thread).tail = size;
            if !emit::piece(thread) {
                break;
            }
            (*thread).words[END] = get!(thread, words[END]) - get!(thread, tail);
        }
        if get!(thread, words[END]) != 0 {
            emit::lose(thread, get!(thread, words[END]));
        }
    }
}

/// Opens a frame for a call that opens no other one inside of it. False: it has none.
#[inline(always)]
fn enter<const SESSION: bool>(ctx: &ProbeContext, cookie: u64) -> bool {
    if stopped() {
        return false;
    }
    count_call(cookie);
    let id = bpf_get_current_pid_tgid();
    let Some(thread) = admit_call(&id) else {
        return false;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        count(counter::ENTRIES, 1);
        let sp = (*ctx.regs).rsp;
        if get!(thread, depth) != 0 {
            if SESSION && call::is_other_stack_open(thread, sp) {
                count(counter::UNMATCHED + unmatched::OTHER_STACK, 1);
                call::skip(thread, 0, cookie);
                return false;
            }
            abandon(thread, sp);
            if get!(thread, depth) >= FRAMES as u64 {
                count(counter::UNMATCHED + unmatched::TOO_DEEP, 1);
                return false;
            }
        }
        // Decrypted where it is: a result that names another place is none.
        if !read::<1>(thread, PLAINTEXT, ctx.arg(2).unwrap_or(0)) {
            (*thread).words[PLAINTEXT] = opaque(0);
        }
        let frame = call::frame(thread);
        (*frame).sp = (*ctx.regs).rsp;
        (*frame).ip = (*ctx.regs).rip;
        (*frame).handle = ctx.arg(1).unwrap_or(0);
        (*frame).buf = ctx.arg(0).unwrap_or(0);
        (*frame).out = ctx.arg(3).unwrap_or(0);
        (*frame).cookie = cookie;
        (*frame).socket = opaque(0);
        (*frame).flags = get!(thread, words[PLAINTEXT]) << FRAME_SIZE;
        (*thread).depth = get!(thread, depth) + 1;
    }
    true
}

/// Drops the calls that lie deeper in the stack than this one: they are gone.
#[inline(always)]
unsafe fn abandon(thread: *mut Thread, sp: u64) {
    let mut i = 0;
    while i < FRAMES {
        // SAFETY: a map value; the mask keeps the index below FRAMES.
        unsafe {
            let depth = get!(thread, depth);
            if depth == 0 || get!(thread, frames[(opaque(depth - 1) & 3) as usize].sp) > sp {
                return;
            }
            (*thread).depth = depth - 1;
            count(counter::UNMATCHED + unmatched::ABANDONED, 1);
        }
        i += 1;
    }
}

#[inline(always)]
fn leave(ctx: &RetProbeContext) -> u32 {
    if stopped() {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    let Some(thread) = THREADS.get_ptr_mut(&id) else {
        return 0;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        if !call::close(thread, (*ctx.regs).rsp - 8) {
            return 0;
        }
        count(counter::RETURNS, 1);
        if !find_layer(ctx, thread) {
            (*thread).words[ENCRYPTER] = get!(call::frame(thread), handle);
            (*thread).words[WRITTEN] = opaque(0);
        }
        let frame = call::frame(thread);
        name(
            thread,
            get!(thread, words[ENCRYPTER]),
            Direction::Received,
            get!(frame, cookie),
        );
        if get!(frame, out) == 0 && get!(thread, words[WRITTEN]) == 0 {
            emit::opened(thread, kind::OPENED);
        }
        if !read::<4>(thread, TAG, get!(call::frame(thread), buf)) {
            count(counter::UNREADABLE, 1);
            return 0;
        }
        if get!(thread, words[TAG]) & 0xff <= ERRORS_MAX {
            return 0;
        }
        let length = get!(thread, words[LENGTH]);
        let place = get!(call::frame(thread), flags) >> FRAME_SIZE;
        let distance = get!(thread, words[PLAINTEXT]).wrapping_sub(place);
        if length > SEALED_MAX || distance != 0 && distance != NONCE {
            count(counter::UNREADABLE, 1);
            return 0;
        }
        begin(thread, Direction::Received, length);
        if get!(thread, words[RECEIVED_TYPE]) & 0xff != APPLICATION_DATA || length == 0 {
            emit::touch(thread);
            return 0;
        }
        count(counter::SEEN, get!(thread, call.position));
        (*thread).buf = get!(thread, words[PLAINTEXT]);
        emit::record(thread);
    }
    0
}

/// Reads the record layer that called into `words`, if a register has its address. They are the same as at the
/// entry: the function has given them back, and its caller has not gone on.
#[inline(always)]
unsafe fn find_layer(ctx: &RetProbeContext, thread: *mut Thread) -> bool {
    macro_rules! look {
        ($($register:ident)*) => {
            $(
                if is_layer(thread, (*ctx.regs).$register) {
                    return true;
                }
            )*
        };
    }
    // SAFETY: the program's context, and a map value.
    unsafe {
        look!(r14 rbx r15 r12 r13 rbp);
    }
    false
}

/// Is there a record layer at `base`, which made the call of the frame that was just closed?
#[inline(always)]
unsafe fn is_layer(thread: *mut Thread, base: u64) -> bool {
    // SAFETY: a map value; `position` is of no use between two calls.
    unsafe {
        if !read::<7>(thread, ENCRYPTER, base + RECORD_LAYER) {
            return false;
        }
        let frame = call::frame(thread);
        if get!(thread, words[DECRYPTER]) != get!(frame, handle)
            || get!(thread, words[READ]) != get!(frame, out)
        {
            return false;
        }
        let table = get!(thread, words[DECRYPTER + 1]);
        let apart = get!(thread, words[ENCRYPTER + 1]).wrapping_sub(table);
        if apart != TABLES_APART[0] && apart != TABLES_APART[1] {
            return false;
        }
        let to = (&raw mut (*hide(thread)).position).cast();
        let method = (table + METHOD) as *const c_void;
        if generated::bpf_probe_read_user(to, 8, method) != 0 {
            return false;
        }
        get!(call::frame(thread), ip).wrapping_sub(get!(thread, position)) < DISTANCE
    }
}
