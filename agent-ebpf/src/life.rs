//! A handle that starts again or is gone, and what else needs no return: the entry says all.

use agent_ebpf::{DETAIL, Direction, Shape};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, generated},
    macros::uprobe,
    programs::ProbeContext,
};

use crate::{
    call::attach_cookie,
    emit,
    filter::{Admission, admit},
    go,
    maps::{count_call, get, opaque, stopped},
    name,
};

/// One link for all such points of a file.
#[uprobe(multi)]
pub fn event_multi(ctx: ProbeContext) -> u32 {
    event(&ctx)
}

/// One perf event per point, each with its cookie (5.15).
#[uprobe]
pub fn event_cookie(ctx: ProbeContext) -> u32 {
    event(&ctx)
}

#[uprobe]
pub fn cleared_perf(ctx: ProbeContext) -> u32 {
    cleared(&ctx, 0)
}

#[uprobe]
pub fn rewired_perf(ctx: ProbeContext) -> u32 {
    rewired(&ctx, 0)
}

#[inline(always)]
fn event(ctx: &ProbeContext) -> u32 {
    const CONTROL: u64 = Shape::Control as u64;
    const CLEARED: u64 = Shape::Cleared as u64;
    const REWIRED: u64 = Shape::Rewired as u64;
    const BEGUN: u64 = Shape::Begun as u64;
    let cookie = attach_cookie(ctx.as_ptr());
    if stopped() {
        return 0;
    }
    count_call(cookie);
    match cookie >> 1 & 15 {
        CONTROL => name::named(ctx),
        CLEARED => cleared(ctx, cookie),
        REWIRED => rewired(ctx, cookie),
        BEGUN => go::begun(ctx, cookie),
        _ => freed(ctx, cookie),
    }
}

/// The object forgets its connection and can have another one.
#[inline(always)]
fn cleared(ctx: &ProbeContext, cookie: u64) -> u32 {
    if stopped() {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    let Admission::Wanted(thread) = admit(&id) else {
        return 0;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        (*thread).key.handle = ctx.arg(0).unwrap_or(0);
        (*thread).key.born = get!(thread, born);
        (*thread).call.cookie = cookie;
        emit::cleared(thread);
    }
    0
}

/// The object gets another transport. What it said so far went over the old one.
#[inline(always)]
fn rewired(ctx: &ProbeContext, cookie: u64) -> u32 {
    if stopped() {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    let Admission::Wanted(thread) = admit(&id) else {
        return 0;
    };
    // SAFETY: the program's context, and a map value.
    unsafe {
        (*thread).key.handle = ctx.arg(0).unwrap_or(0);
        (*thread).key.born = get!(thread, born);
        (*thread).call.cookie = cookie;
        emit::rewired(thread);
    }
    0
}

/// One owner gives the object up. It is gone if there was no other, and the object itself says that: to count
/// the owners from outside would be a guess, because the library takes some for itself. If two give it up at
/// once each may see the other, and nobody the end: then it is found at the next use of the address.
///
/// Go's `Close` may be called again, while other calls of the connection are under way, and what was decrypted before
/// may be read yet. So nothing is forgotten here: that is for user space, a little later.
#[inline(always)]
fn freed(ctx: &ProbeContext, cookie: u64) -> u32 {
    let is_go = cookie >> DETAIL == 0;
    // SAFETY: the program's context. Both are loaded before one is chosen: a chosen register would be a computed
    // offset into the context.
    let (first, of_go) = unsafe { (opaque((*ctx.regs).rdi), opaque((*ctx.regs).rax)) };
    let handle = if is_go { of_go } else { first };
    if handle == 0 || stopped() {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    let Admission::Wanted(thread) = admit(&id) else {
        return 0;
    };
    if is_go {
        // SAFETY: a map value.
        unsafe {
            (*thread).key.handle = handle;
            (*thread).key.born = get!(thread, born);
            (*thread).key.direction = Direction::Received as u32;
            emit::left(thread);
        }
        return 0;
    }
    let mut owners = 0u32;
    // SAFETY: the helper fails on a wrong address, `owners` is four bytes; a map value.
    unsafe {
        let from = (handle + (cookie >> DETAIL)) as *const _;
        if generated::bpf_probe_read_user((&raw mut owners).cast(), 4, from) != 0 || owners != 1 {
            return 0;
        }
        (*thread).key.handle = handle;
        (*thread).key.born = get!(thread, born);
        emit::freed(thread);
    }
    0
}
