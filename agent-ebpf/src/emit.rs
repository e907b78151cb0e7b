//! Reserve, fill, submit; and count and place what could not be sent.

use core::{ffi::c_void, mem::offset_of, ptr};

use agent_ebpf::{
    Bound, Data, Direction, Freed, Gap, HANDLES, Head, ON_SOCKET, Opened, Place, Process,
    RECORD_MAX, RECORDS_PER_CALL, REJOINED, SEVERAL_SOCKETS, SHELVED, Stream, TOUCHES_MAX, Thread,
    Touch, Unseen, cause, control, counter, kind,
};
use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_ktime_get_boot_ns, generated},
};

use crate::budget;
use crate::maps::{
    PROCESSES, RING, STREAMS, address, control, count, get, hide, insert, lookup, opaque, remove,
    ring_size,
};
#[cfg(any(feature = "planted-scratch", feature = "planted-stack"))]
use crate::planted;

const HEADER: u64 = size_of::<Data>() as u64;
pub const NO_WAKEUP: u64 = BPF_RB_NO_WAKEUP as u64;
const FORCE_WAKEUP: u64 = BPF_RB_FORCE_WAKEUP as u64;
/// Full records between two wake-ups in the copy loop: 1 MiB.
const WAKE_EVERY: u64 = (1 << 20) / RECORD_MAX;

/// `size` must be a constant on every path: the verifier wants it so.
#[inline(always)]
pub fn reserve(size: u64) -> *mut u8 {
    // SAFETY: a ring buffer map; the result is checked by every caller.
    unsafe { generated::bpf_ringbuf_reserve(address(&RING).cast_mut(), size, 0).cast() }
}

/// The reader says in shared memory whether it is awake, as network cards do: one wake-up per sleep.
/// Call it after a `lock` instruction (a counter): the reservation has to be visible before the word is
/// read.
#[inline(always)]
pub fn wake_flags() -> u64 {
    if control(control::AWAKE) != 0 {
        NO_WAKEUP
    } else {
        FORCE_WAKEUP
    }
}

/// Sends the bytes of the call that `thread` describes (`key`, `buf`, `call.position`, `socket`,
/// `cookie`), in order, and advances the stream.
#[inline(always)]
pub fn call(thread: *mut Thread) {
    // SAFETY: `thread` is a map value throughout; its fields are read again after each helper call.
    unsafe {
        // Before anything can fail: a loss must show.
        if get!(thread, socket) == 0 {
            (*thread).sequence = get!(thread, sequence) + 1;
        }
        budget::note(thread);
        if !place::<true>(thread) {
            return;
        }
        let len = get!(thread, call.position);
        (*thread).full = (len - 1) / RECORD_MAX;
        (*thread).tail = len - (len - 1) / RECORD_MAX * RECORD_MAX;
        (*thread).copied = opaque(0);
        (*thread).missed = opaque(0);
        let mut i = 0;
        while i < RECORDS_PER_CALL {
            if i >= get!(thread, full) {
                break;
            }
            let record = if budget::is_reserve(budget::filled()) {
                ptr::null_mut()
            } else {
                reserve(HEADER + RECORD_MAX)
            };
            if record.is_null() {
                lose(thread, get!(thread, call.position) - i * RECORD_MAX);
                count_full(thread);
                return;
            }
            copy::<false>(thread, record, RECORD_MAX, i);
            i += 1;
        }
        count_full(thread);
        if get!(thread, full) >= RECORDS_PER_CALL {
            cut(thread);
            return;
        }
        let (record, room) = reserve_class(get!(thread, tail));
        if record.is_null() {
            lose(thread, get!(thread, tail));
            return;
        }
        copy::<true>(thread, record, room, 0);
    }
}

/// The same of a call of at most [`RECORD_MAX`] bytes.
#[inline(always)]
pub fn record(thread: *mut Thread) {
    if !start(thread) {
        return;
    }
    // SAFETY: as above.
    unsafe {
        (*thread).tail = get!(thread, call.position);
        let (record, room) = reserve_class(get!(thread, tail));
        if record.is_null() {
            lose(thread, get!(thread, tail));
            return;
        }
        copy::<true>(thread, record, room, 0);
    }
}

/// Begins a call whose bytes come in pieces. False if it can't be sent: then it is counted.
#[inline(always)]
pub fn start(thread: *mut Thread) -> bool {
    // SAFETY: as above.
    unsafe {
        (*thread).sequence = get!(thread, sequence) + 1;
        (*thread).full = opaque(0);
        budget::note(thread);
        place::<true>(thread)
    }
}

/// Sends the next piece of it: `tail` bytes at `buf`, at most [`SEALED_MAX`]. False if the ring is full.
#[inline(always)]
pub fn piece(thread: *mut Thread) -> bool {
    // SAFETY: as above.
    unsafe {
        let (record, room) = reserve_piece(get!(thread, tail));
        send_piece(thread, record, room)
    }
}

/// The same of at most [`RECORD_MAX`].
#[inline(always)]
pub fn part(thread: *mut Thread) -> bool {
    // SAFETY: as above.
    unsafe {
        let (record, room) = reserve_part(get!(thread, tail));
        send_piece(thread, record, room)
    }
}

#[inline(always)]
unsafe fn send_piece(thread: *mut Thread, record: *mut u8, room: u64) -> bool {
    // SAFETY: as above; `record` is null or a reservation of HEADER + room bytes.
    unsafe {
        if record.is_null() {
            return false;
        }
        copy::<true>(thread, record, room, 0);
        (*thread).position = get!(thread, position) + get!(thread, tail);
    }
    true
}

/// The call of `thread` moved `call.position` bytes that were in no buffer: a hole from the start, with this cause.
#[inline(always)]
pub fn unbuffered(thread: *mut Thread, cause: u16) {
    // SAFETY: `thread` is a map value.
    unsafe {
        if get!(thread, socket) == 0 {
            (*thread).sequence = get!(thread, sequence) + 1;
        }
        if !place::<false>(thread) {
            return;
        }
        leave_out(thread, get!(thread, call.position), cause);
    }
}

/// `length` bytes of a call are a hole: the last of one that comes in pieces, or all of it.
#[inline(always)]
pub unsafe fn leave_out(thread: *mut Thread, length: u64, cause: u16) {
    // SAFETY: `thread` is a map value; `gap` is a reservation of this size.
    unsafe {
        let gap = reserve(size_of::<Gap>() as u64);
        if gap.is_null() {
            lose(thread, length);
            return;
        }
        fill_gap(thread, gap.cast(), get!(thread, position), length, cause);
        count(counter::LOST + cause as usize, length);
        generated::bpf_ringbuf_submit(gap.cast(), wake_flags());
    }
}

/// The streams of the handle in `key` begin here, both of them: its connection was just met. TCP's numbers of both are in
/// `words`.
#[inline(always)]
pub unsafe fn meet(thread: *mut Thread) {
    // SAFETY: `thread` is a map value, `key` and `call` are a key and a value of STREAMS.
    unsafe {
        (*thread).call.position = opaque(0);
        (*thread).call.pending = opaque(0);
        (*thread).call.cause = opaque(0);
        (*thread).key.direction = Direction::Received as u32;
        (*thread).call.touches = get!(thread, words[Direction::Received as usize]);
        begin(thread);
        (*thread).key.direction = Direction::Sent as u32;
        (*thread).call.touches = get!(thread, words[Direction::Sent as usize]);
        begin(thread);
    }
}

#[inline(always)]
pub unsafe fn stream(thread: *mut Thread) -> *mut Stream {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe { lookup(address(&STREAMS), (&raw const (*hide(thread)).key).cast()) }
}

/// Finds the call's position in its stream and sends what is pending there. False if the call can't be
/// sent: then it is counted. Only what is `COPIED` into the ring is anybody's budget.
#[inline(always)]
unsafe fn place<const COPIED: bool>(thread: *mut Thread) -> bool {
    // SAFETY: `thread` is a map value; `key` and `call` are a key and a value of STREAMS.
    unsafe {
        (*thread).position = 0;
        (*thread).handle_born = get!(thread, born);
        let stream = stream(thread);
        if stream.is_null() {
            if get!(thread, call.opened) != 0 {
                (*thread).handle_born = get!(thread, call.opened);
            }
            let key = (&raw const (*hide(thread)).key).cast();
            let new = (&raw const (*hide(thread)).call).cast();
            if insert(address(&STREAMS), key, new) {
                return true;
            }
            let len = get!(thread, call.position);
            count(counter::LOST + cause::MAP_FULL as usize, len);
            let gap = reserve(size_of::<Gap>() as u64);
            if !gap.is_null() {
                fill_gap(thread, gap.cast(), u64::MAX, len, cause::MAP_FULL);
                generated::bpf_ringbuf_submit(gap.cast(), wake_flags());
            }
            return false;
        }
        // A plain read-modify-write: the caller still holds its handle, so no other thread is here.
        let position = get!(stream, position);
        (*thread).position = position;
        if get!(stream, opened) != 0 {
            (*thread).handle_born = get!(stream, opened);
        }
        (*stream).position = position + get!(thread, call.position);
        if COPIED {
            let refusal = budget::refusal(thread);
            if refusal != budget::FITS {
                let len = get!(thread, call.position);
                lose_at(stream, len, refusal);
                return false;
            }
        }
        // The hole comes before the bytes behind it. While it can't be announced, all that follows is
        // part of it: so a stream has at most one hole that is pending, and it has one cause.
        if !announce_pending(thread, stream, position) {
            let len = get!(thread, call.position);
            lose_at(stream, len, cause::RING_FULL);
            return false;
        }
        true
    }
}

/// Adds to the hole at the stream's end. A hole that is there already keeps its cause.
#[inline(always)]
unsafe fn lose_at(stream: *mut Stream, len: u64, cause: u16) {
    // SAFETY: a map value.
    unsafe {
        if get!(stream, pending) == 0 {
            (*stream).cause = u64::from(cause);
        }
        (*stream).pending = get!(stream, pending) + len;
        if get!(stream, cause) == u64::from(cause::OVER_BUDGET) {
            count(counter::LOST + cause::OVER_BUDGET as usize, len);
        } else {
            count(counter::LOST + cause::RING_FULL as usize, len);
        }
    }
}

/// Sends the hole at `end` of the stream, if there is one. False if the ring is full.
#[inline(always)]
unsafe fn announce_pending(thread: *mut Thread, stream: *mut Stream, end: u64) -> bool {
    // SAFETY: map values; `gap` is a reservation of this size.
    unsafe {
        if get!(stream, pending) == 0 {
            return true;
        }
        let gap = reserve(size_of::<Gap>() as u64);
        if gap.is_null() {
            return false;
        }
        let pending = get!(stream, pending);
        (*stream).pending = 0;
        fill_gap(
            thread,
            gap.cast(),
            end - pending,
            pending,
            get!(stream, cause) as u16,
        );
        count(counter::ANNOUNCED, pending);
        generated::bpf_ringbuf_submit(gap.cast(), wake_flags());
        true
    }
}

/// The handle lives on, for another connection. The library does this by itself, too, when it makes an object
/// and before each first handshake: what has carried nothing is as good as new.
#[inline(always)]
pub unsafe fn cleared(thread: *mut Thread) {
    // SAFETY: `thread` is a map value.
    unsafe {
        if has_carried(thread) {
            opened(thread, kind::CLEARED);
        }
    }
}

/// The handle lives on, and what it says goes another way: a name that was inferred holds no longer. Libraries set
/// the transport in two steps, and before the first handshake.
#[inline(always)]
pub unsafe fn rewired(thread: *mut Thread) {
    // SAFETY: `thread` is a map value.
    unsafe {
        if has_carried(thread) {
            (*thread).key.direction = Direction::Received as u32;
            join(thread);
        }
    }
}

/// Or did it, before it was joined in its middle?
#[inline(always)]
unsafe fn has_carried(thread: *mut Thread) -> bool {
    // SAFETY: `thread` is a map value.
    unsafe {
        (*thread).key.direction = Direction::Sent as u32;
        if has_carried_here(thread) {
            return true;
        }
        (*thread).key.direction = Direction::Received as u32;
        has_carried_here(thread)
    }
}

#[inline(always)]
unsafe fn has_carried_here(thread: *mut Thread) -> bool {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe {
        let stream = stream(thread);
        if stream.is_null() {
            return false;
        }
        let is_joined = get!(stream, opened) & REJOINED;
        get!(stream, position) | get!(stream, touches) & !ON_SOCKET | is_joined != 0
    }
}

/// The handle is gone, and its place in the map with it. Only if its making was seen: the streams of one that
/// is older share their names with whatever gets the address next unseen, and have to go on. And only if that
/// can be said now: else the next handle at the address will say it.
#[inline(always)]
pub unsafe fn freed(thread: *mut Thread) {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS; `record` is a reservation of this size, every
    // field is written.
    unsafe {
        (*thread).key.direction = Direction::Sent as u32;
        let stream = stream(thread);
        if stream.is_null() || get!(stream, opened) == 0 || !end(thread) {
            return;
        }
        (*thread).key.direction = Direction::Received as u32;
        if !end(thread) {
            return;
        }
        let record: *mut Freed = reserve(size_of::<Freed>() as u64).cast();
        if record.is_null() {
            return;
        }
        (*record).head = Head {
            kind: kind::FREED,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).born = get!(thread, handle_born);
        (*record).handle = get!(thread, key.handle);
        // Nobody waits for it.
        generated::bpf_ringbuf_submit(record.cast(), NO_WAKEUP);
        forget(thread);
        (*thread).key.direction = Direction::Sent as u32;
        forget(thread);
    }
}

/// The handle is used up, as far as its program is concerned.
#[inline(always)]
pub unsafe fn left(thread: *mut Thread) {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS; `record` is a reservation of this size, every
    // field is written.
    unsafe {
        let stream = stream(thread);
        if stream.is_null() || get!(stream, opened) == 0 {
            return;
        }
        (*thread).handle_born = get!(stream, opened);
        let record: *mut Freed = reserve(size_of::<Freed>() as u64).cast();
        if record.is_null() {
            return;
        }
        (*record).head = Head {
            kind: kind::LEFT,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).born = get!(thread, handle_born);
        (*record).handle = get!(thread, key.handle);
        // Nobody waits for it.
        generated::bpf_ringbuf_submit(record.cast(), NO_WAKEUP);
    }
}

#[inline(always)]
unsafe fn forget(thread: *mut Thread) {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe { remove(address(&STREAMS), (&raw const (*hide(thread)).key).cast()) };
}

/// A new connection: ends the streams of whoever had the handle before, and says so. Only if there is not even
/// room to keep a hole at their end they go on instead: a connection that is not told apart is better than
/// bytes unaccounted for.
#[inline(always)]
pub unsafe fn opened(thread: *mut Thread, kind: u16) {
    // SAFETY: `thread` is a map value; `record` is a reservation of this size, every field is written.
    unsafe {
        budget::note(thread);
        (*thread).call.opened = bpf_ktime_get_boot_ns();
        (*thread).call.touches = opaque(0);
        if !renew(thread) {
            return;
        }
        let record: *mut Opened = reserve(size_of::<Opened>() as u64).cast();
        if record.is_null() {
            // Its records tell it apart all the same.
            return;
        }
        (*record).head = Head {
            kind,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).born = get!(thread, call.opened);
        (*record).handle = get!(thread, key.handle);
        (*record).cookie = get!(thread, call.cookie);
        generated::bpf_ringbuf_submit(record.cast(), wake_flags());
    }
}

/// The process was away, and a handle that is older than its return has a hole of unknown length.
#[inline(always)]
pub unsafe fn rejoin(thread: *mut Thread, handle: u64) {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe {
        (*thread).key.handle = handle;
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = Direction::Received as u32;
        let stream = stream(thread);
        if stream.is_null() || get!(stream, opened) & !REJOINED < get!(thread, back) {
            join(thread);
        }
    }
}

/// From here on the handle is a connection that was joined in its middle. What works in memory is told from what
/// uses sockets as before: stamped by mistake, a name would be a wrong one. `key` is the received stream's.
#[inline(always)]
unsafe fn join(thread: *mut Thread) {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe {
        (*thread).call.touches = opaque(0);
        let stream = stream(thread);
        if !stream.is_null() && get!(stream, touches) & !ON_SOCKET != 0 {
            (*thread).call.touches = 1;
        }
        (*thread).call.opened = bpf_ktime_get_boot_ns() | REJOINED;
        renew(thread);
        (*thread).call.touches = opaque(0);
    }
}

/// Ends both streams of the handle in `key` and begins them again, with `call.opened`, `call.touches` and
/// `call.cookie`. False if there is not even room to keep a hole at their end.
#[inline(always)]
unsafe fn renew(thread: *mut Thread) -> bool {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe {
        (*thread).key.direction = Direction::Sent as u32;
        if !end(thread) {
            return false;
        }
        (*thread).key.direction = Direction::Received as u32;
        if !end(thread) {
            return false;
        }
        // Zeros side by side would be a call of `memset`.
        (*thread).call.position = opaque(0);
        (*thread).call.pending = opaque(0);
        (*thread).call.cause = opaque(0);
        begin(thread);
        (*thread).key.direction = Direction::Sent as u32;
        begin(thread);
        (*thread).key.direction = Direction::Received as u32;
        true
    }
}

/// A call of the handle in `key` passes by, or is none. If the ring is full, the counter alone says so.
#[inline(always)]
pub unsafe fn unseen(thread: *mut Thread, kind: u16) {
    // SAFETY: `thread` is a map value; `record` is a reservation of this size, every field is written.
    unsafe {
        (*thread).handle_born = get!(thread, born);
        let stream = stream(thread);
        if !stream.is_null() && get!(stream, opened) != 0 {
            (*thread).handle_born = get!(stream, opened);
        }
        let record: *mut Unseen = reserve(size_of::<Unseen>() as u64).cast();
        if record.is_null() {
            return;
        }
        (*record).head = Head {
            kind,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).born = get!(thread, handle_born);
        (*record).handle = get!(thread, key.handle);
        (*record).cookie = get!(thread, call.cookie);
        generated::bpf_ringbuf_submit(record.cast(), wake_flags());
    }
}

/// What the next record of the thread says about its place.
#[inline(always)]
pub unsafe fn standing(thread: *mut Thread) -> Place {
    // SAFETY: a map value.
    unsafe {
        let skipped = get!(thread, skipped) as u32;
        (*thread).skipped = opaque(0);
        Place {
            sequence: get!(thread, sequence) as u32,
            skipped,
        }
    }
}

/// Room for a record that carries no plaintext. Never at plaintext's cost: above half, the ring is for data.
#[inline(always)]
pub fn reserve_spare(size: u64) -> *mut u8 {
    if budget::filled() > ring_size() / 2 {
        return ptr::null_mut();
    }
    reserve(size)
}

/// A call of `thread.key.handle` that carried no plaintext.
#[inline(always)]
pub unsafe fn touch(thread: *mut Thread) {
    // SAFETY: map values; `record` is a reservation of this size, every field is written.
    unsafe {
        if control(control::SOCKETS) == 0 {
            return;
        }
        (*thread).key.direction = Direction::Received as u32;
        if get!(thread, socket) != 0 {
            let stream = stream(thread);
            if !stream.is_null()
                && get!(stream, touches) == 0
                && get!(thread, socket) != SEVERAL_SOCKETS
            {
                (*stream).touches = ON_SOCKET;
                (*thread).handle_born = get!(thread, born);
                if get!(stream, opened) != 0 {
                    (*thread).handle_born = get!(stream, opened);
                }
                bound(thread);
            }
            return;
        }
        (*thread).call.position = opaque(0);
        if stream(thread).is_null() {
            begin(thread);
        }
        let stream = stream(thread);
        if stream.is_null() {
            return;
        }
        let touches = get!(stream, touches);
        if touches >= TOUCHES_MAX {
            (*thread).skipped = 1;
            return;
        }
        (*stream).touches = touches + 1;
        (*thread).handle_born = get!(thread, born);
        if get!(stream, opened) != 0 {
            (*thread).handle_born = get!(stream, opened);
        }
        if touches == 0 {
            let tgid = (&raw const (*hide(thread)).key.tgid).cast();
            let process: *mut Process = lookup(address(&PROCESSES), tgid);
            if !process.is_null() {
                (*process).flags = get!(process, flags) + (1 << HANDLES);
            }
        }
        (*thread).sequence = get!(thread, sequence) + 1;
        let record: *mut Touch = reserve_spare(size_of::<Touch>() as u64).cast();
        if record.is_null() {
            return;
        }
        (*record).head = Head {
            kind: kind::TOUCH,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).born = get!(thread, handle_born);
        (*record).handle = get!(thread, key.handle);
        (*record).place = standing(thread);
        // Nobody waits for it by itself.
        generated::bpf_ringbuf_submit(record.cast(), NO_WAKEUP);
    }
}

/// Says which socket the handle uses. Without room for it the data will, if it uses one.
#[inline(always)]
unsafe fn bound(thread: *mut Thread) {
    // SAFETY: `thread` is a map value; `record` is a reservation of this size, every field is written.
    unsafe {
        let record: *mut Bound = reserve_spare(size_of::<Bound>() as u64).cast();
        if record.is_null() {
            return;
        }
        (*record).head = Head {
            kind: kind::BOUND,
            direction: Direction::Received as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).born = get!(thread, handle_born);
        (*record).handle = get!(thread, key.handle);
        (*record).socket = get!(thread, socket);
        // Nobody waits for it by itself.
        generated::bpf_ringbuf_submit(record.cast(), NO_WAKEUP);
    }
}

/// Since when the handle of `thread.key` means what it means: into `thread.handle_born`.
#[inline(always)]
pub unsafe fn find_birth(thread: *mut Thread) {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe {
        (*thread).handle_born = get!(thread, born);
        let stream = stream(thread);
        if !stream.is_null() && get!(stream, opened) != 0 {
            (*thread).handle_born = get!(stream, opened);
        }
    }
}

/// The stream ends. A hole at its end is told, or kept to be told later; false if neither can be done.
#[inline(always)]
unsafe fn end(thread: *mut Thread) -> bool {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe {
        let stream = stream(thread);
        if stream.is_null() {
            return true;
        }
        (*thread).handle_born = get!(thread, born);
        if get!(stream, opened) != 0 {
            (*thread).handle_born = get!(stream, opened);
        }
        announce_pending(thread, stream, get!(stream, position)) || shelve(thread, stream)
    }
}

/// Keeps a stream with its hole where no call finds it, until the privileged half takes it out.
#[inline(always)]
unsafe fn shelve(thread: *mut Thread, stream: *mut Stream) -> bool {
    // SAFETY: map values; `key` is a key of STREAMS and `stream` a value.
    unsafe {
        (*thread).key.born = get!(thread, handle_born);
        (*thread).key.direction = get!(thread, key.direction) | SHELVED;
        let key = (&raw const (*hide(thread)).key).cast();
        let is_kept = insert(address(&STREAMS), key, stream.cast());
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = get!(thread, key.direction) & !SHELVED;
        if is_kept {
            (*stream).pending = 0;
            count(counter::SHELVED, 1);
        }
        is_kept
    }
}

/// The stream begins. Without room for it the first call finds none either, and counts that.
#[inline(always)]
unsafe fn begin(thread: *mut Thread) {
    // SAFETY: `key` and `call` are a key and a value of STREAMS.
    unsafe {
        let key = (&raw const (*hide(thread)).key).cast();
        let new = (&raw const (*hide(thread)).call).cast();
        insert(address(&STREAMS), key, new);
    }
}

/// The last `len` bytes of the call are lost to a full ring; the next call of the stream says so.
#[inline(always)]
pub unsafe fn lose(thread: *mut Thread, len: u64) {
    // SAFETY: `thread` is a map value, `key` a key of STREAMS.
    unsafe {
        let stream = stream(thread);
        if stream.is_null() {
            count(counter::LOST + cause::RING_FULL as usize, len);
        } else {
            lose_at(stream, len, cause::RING_FULL);
        }
    }
}

/// The part of a call above the bound is a gap of its own.
#[inline(always)]
unsafe fn cut(thread: *mut Thread) {
    const LIMIT: u64 = RECORD_MAX * RECORDS_PER_CALL;
    // SAFETY: `thread` is a map value; `gap` is a reservation of this size.
    unsafe {
        let gap = reserve(size_of::<Gap>() as u64);
        let rest = get!(thread, call.position) - LIMIT;
        if gap.is_null() {
            lose(thread, rest);
            return;
        }
        let offset = get!(thread, position) + LIMIT;
        fill_gap(thread, gap.cast(), offset, rest, cause::CALL_TOO_LONG);
        count(counter::LOST + cause::CALL_TOO_LONG as usize, rest);
        generated::bpf_ringbuf_submit(gap.cast(), wake_flags());
    }
}

/// Fills and submits one record: the call's last one, or its `i`th full one. A page that is away makes
/// a gap of this record and costs none of the others.
#[inline(always)]
unsafe fn copy<const TAIL: bool>(thread: *mut Thread, record: *mut u8, room: u64, i: u64) {
    // SAFETY: `thread` is a map value, `record` a reservation of HEADER + room bytes.
    unsafe {
        macro_rules! offset {
            () => {
                if TAIL {
                    get!(thread, full) * RECORD_MAX
                } else {
                    i * RECORD_MAX
                }
            };
        }
        macro_rules! len {
            () => {
                if TAIL { get!(thread, tail) } else { RECORD_MAX }
            };
        }
        // Field by field into the ring: built on the stack it would be 64 bytes there.
        let data: *mut Data = record.cast();
        (*data).head = Head {
            kind: kind::DATA,
            direction: get!(thread, key.direction) as u16,
            len: len!() as u32,
            time: bpf_ktime_get_boot_ns(),
        };
        (*data).pid_tgid = get!(thread, pid_tgid);
        (*data).born = get!(thread, handle_born);
        (*data).handle = get!(thread, key.handle);
        (*data).offset = get!(thread, position) + offset!();
        (*data).socket = get!(thread, socket);
        (*data).cookie = get!(thread, call.cookie);
        (*data).place = standing(thread);

        #[cfg(any(feature = "planted-scratch", feature = "planted-stack"))]
        let kept = planted::Kept::new(|| get!(thread, key.handle));

        let mut size = opaque(len!());
        if size > room {
            size = room;
        }
        let to: *mut c_void = record.add(HEADER as usize).cast();
        let from = (get!(thread, buf) + offset!()) as *const c_void;
        let failure = generated::bpf_probe_read_user(to, size as u32, from);
        let gap: *mut Gap = record.cast();
        if !TAIL {
            // Without a branch, and counted behind the loop: what is walked on two ways here is walked on both
            // to the end of the loop, and that is most of the verifier's work.
            let missed = opaque(failure as u64 >> 63);
            let copied = opaque(missed ^ 1);
            (*gap).head.kind =
                (u64::from(kind::DATA) * copied + u64::from(kind::GAP) * missed) as u16;
            (*gap).head.len = (RECORD_MAX * copied) as u32;
            (*gap).length = get!(thread, socket) * copied + RECORD_MAX * missed;
            (*gap).cause =
                get!(thread, call.cookie) * copied + u64::from(cause::COPY_FAULT) * missed;
            (*thread).copied = get!(thread, copied) + copied;
            (*thread).missed = get!(thread, missed) + missed;
        } else if failure != 0 {
            (*gap).head.kind = kind::GAP;
            (*gap).head.len = 0;
            (*gap).length = len!();
            (*gap).cause = u64::from(cause::COPY_FAULT);
            count(counter::LOST + cause::COPY_FAULT as usize, len!());
        } else {
            count(counter::RECORDS, 1);
        }
        #[cfg(any(feature = "planted-scratch", feature = "planted-stack"))]
        {
            (*data).handle = kept.get();
        }
        // In the loop a constant on each walk of the verifier: no branch for it.
        let flags = if TAIL {
            wake_flags()
        } else if i % WAKE_EVERY == 0 {
            FORCE_WAKEUP
        } else {
            NO_WAKEUP
        };
        generated::bpf_ringbuf_submit(record.cast(), flags);
    }
}

/// Counts what became of the full records of a call.
#[inline(always)]
unsafe fn count_full(thread: *mut Thread) {
    // SAFETY: `thread` is a map value.
    unsafe {
        if get!(thread, copied) != 0 {
            count(counter::RECORDS, get!(thread, copied));
        }
        if get!(thread, missed) != 0 {
            let lost = get!(thread, missed) * RECORD_MAX;
            count(counter::LOST + cause::COPY_FAULT as usize, lost);
        }
    }
}

/// The fields of a gap lie where those of data do that a gap has not.
const _: () = {
    assert!(offset_of!(Gap, length) == offset_of!(Data, socket));
    assert!(offset_of!(Gap, cause) == offset_of!(Data, cookie));
};

#[inline(always)]
unsafe fn fill_gap(thread: *mut Thread, gap: *mut Gap, offset: u64, length: u64, cause: u16) {
    // SAFETY: `thread` is a map value, `gap` a reservation of this size; every field is written.
    unsafe {
        (*gap).offset = offset;
        (*gap).length = length;
        (*gap).cause = u64::from(cause);
        (*gap).head = Head {
            kind: kind::GAP,
            direction: get!(thread, key.direction) as u16,
            len: 0,
            time: bpf_ktime_get_boot_ns(),
        };
        (*gap).pid_tgid = get!(thread, pid_tgid);
        (*gap).born = get!(thread, handle_born);
        (*gap).handle = get!(thread, key.handle);
    }
}

/// Reserves the smallest of 81 sizes that holds `len` bytes: eight per octave, so that 4 to 5 % of the
/// ring is rounding, not 38 % as with one per octave. Returns the record and its payload room.
#[inline(always)]
fn reserve_class(len: u64) -> (*mut u8, u64) {
    macro_rules! classes {
        ($($octave:literal)*) => {
            $(
                if len <= 2 * $octave {
                    classes!(@ $octave; 1 2 3 4 5 6 7 8);
                }
            )*
        };
        (@ $octave:literal; $($eighth:literal)*) => {
            $(
                if len <= $octave + $octave / 8 * $eighth {
                    const ROOM: u64 = $octave + $octave / 8 * $eighth;
                    // Hidden, else LLVM chooses size and room apart, and 5.10 walks a small record
                    // with a large room.
                    return (reserve(HEADER + ROOM), opaque(ROOM));
                }
            )*
        };
    }
    if len <= 64 {
        return (reserve(HEADER + 64), 64);
    }
    classes!(64 128 256 512 1024 2048 4096 8192 16384 32768);
    (core::ptr::null_mut(), 0)
}

/// The same of few sizes: pieces come in a loop, of which the verifier walks every way.
macro_rules! few_classes {
    ($name:ident: $($room:literal)*) => {
        #[inline(always)]
        fn $name(len: u64) -> (*mut u8, u64) {
            $(
                if len <= $room {
                    return (reserve(HEADER + $room), opaque($room));
                }
            )*
            (core::ptr::null_mut(), 0)
        }
    };
}
few_classes!(reserve_piece: 64 256 1024 4096 8192 16384);
few_classes!(reserve_part: 64 256 1024 4096 16384 65536);
