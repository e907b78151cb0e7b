//! One process that floods the ring must not starve the others: the upper half of the ring is shared out.
//!
//! The lower half is anybody's. Above it, while more than one process calls, each may add an eighth of the
//! ring per window of time; what a process sends beyond that is lost first. A process alone has all but the
//! last sixteenth: whoever comes next finds room for its first records.

use agent_ebpf::{Thread, cause};
use aya_ebpf::{
    bindings::BPF_RB_AVAIL_DATA,
    helpers::{bpf_ktime_get_boot_ns, generated},
};

use crate::maps::{LATEST, RING, address, budget_of, get, hide, opaque, ring_size};

/// A caller that nobody else followed for so long is alone.
const ALONE: u64 = 2_000_000_000;
/// Processes that take turns note it this often: the word is one for all CPUs.
const TURN: u64 = 100_000_000;
/// Windows of 134 ms.
const WINDOW_BITS: u64 = 27;
/// Bytes of a thread between two looks at the ring's level: small calls don't pay for one each.
const UNCHECKED: u64 = 64 << 10;

/// Notes who calls.
#[inline(always)]
pub fn note(thread: *mut Thread) {
    let Some(latest) = LATEST.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: map values. Several CPUs may write at once: either is true.
    unsafe {
        let tgid = u64::from(get!(thread, key.tgid));
        if get!(latest, tgid) == tgid {
            return;
        }
        if get!(latest, tgid) == 0 {
            (*latest).tgid = tgid;
            return;
        }
        let now = bpf_ktime_get_boot_ns();
        if now - get!(latest, since) > TURN {
            (*latest).tgid = tgid;
            (*latest).since = now;
        }
    }
}

/// Is only the room left that is kept for newcomers?
#[inline(always)]
pub fn is_reserve(filled: u64) -> bool {
    filled > ring_size() - ring_size() / 16
}

/// Bytes in the ring that were not read yet.
#[inline(always)]
pub fn filled() -> u64 {
    // SAFETY: a ring buffer map.
    unsafe { generated::bpf_ringbuf_query(address(&RING).cast_mut(), u64::from(BPF_RB_AVAIL_DATA)) }
}

/// No cause.
pub const FITS: u16 = u16::MAX;

/// Why this call of `call.position` bytes has no room, though the ring has: [`cause::OVER_BUDGET`] beyond
/// the share of its process, which counts it otherwise; or [`FITS`].
#[inline(always)]
pub fn refusal(thread: *mut Thread) -> u16 {
    // SAFETY: map values.
    unsafe {
        let unchecked = get!(thread, unchecked) + get!(thread, call.position);
        (*thread).unchecked = unchecked;
        if unchecked < UNCHECKED {
            return FITS;
        }
        let filled = filled();
        let Some(latest) = LATEST.get_ptr(0) else {
            return FITS;
        };
        let now = bpf_ktime_get_boot_ns();
        let is_alone = now - get!(latest, since) > ALONE;
        if is_alone && is_reserve(filled) {
            (*thread).unchecked = UNCHECKED;
            return cause::RING_FULL;
        }
        if is_alone || filled < ring_size() / 2 {
            (*thread).unchecked = opaque(0);
            return FITS;
        }
        let budget = budget_of((&raw const (*hide(thread)).key.tgid).cast());
        if budget.is_null() {
            return FITS;
        }
        // Racing threads of the process lose a little of what they used: a budget, not a ledger.
        if get!(budget, window) != now >> WINDOW_BITS {
            (*budget).window = now >> WINDOW_BITS;
            (*budget).used = 0;
        }
        let used = get!(budget, used) + get!(thread, unchecked);
        if used > ring_size() / 8 {
            // Not more than this, so that the next call is looked at, too, and may pass in a later window.
            (*thread).unchecked = UNCHECKED;
            return cause::OVER_BUDGET;
        }
        (*budget).used = used;
        (*thread).unchecked = opaque(0);
        FITS
    }
}
