//! Reads the kernel's ring, counters and control words through shared memory: no `bpf()` call, so the
//! pipeline needs no privilege for it.
//!
//! Layout: `kernel/bpf/ringbuf.c`. One page for the consumer's position, one for the producer's, then
//! the data twice in a row, so that a record never wraps.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    ptr, slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use agent_ebpf::control;
use rustix::mm::{MapFlags, ProtFlags, mmap};

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
/// `u32 len | flags`, `u32 page offset`.
const HEADER: u64 = 8;

/// What a look at the ring found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Record,
    Empty,
    /// The next record is reserved and not yet committed. `poll` would return at once: wait by the clock.
    Busy,
}

pub struct Ring {
    fd: OwnedFd,
    consumer: *const AtomicU64,
    producer: *const AtomicU64,
    data: *const u8,
    size: u64,
    position: u64,
}

impl Ring {
    /// `size` is the ring's in bytes.
    pub fn map(fd: OwnedFd, size: u64) -> io::Result<Ring> {
        if !size.is_power_of_two() || !(4096..=1 << 30).contains(&size) {
            return Err(io::Error::other(format!("a ring of {size} bytes")));
        }
        let page = rustix::param::page_size();
        let length = page + 2 * size as usize;
        // SAFETY: new mappings of a ring map. Only the consumer's page may be writable.
        let (consumer, producer) = unsafe {
            let both = ProtFlags::READ | ProtFlags::WRITE;
            let consumer = mmap(ptr::null_mut(), page, both, MapFlags::SHARED, fd.as_fd(), 0)?;
            let from = page as u64;
            let producer = mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd.as_fd(),
                from,
            )?;
            (consumer.cast::<AtomicU64>(), producer.cast::<u8>())
        };
        // SAFETY: inside the mapping from above; the positions are aligned to a page.
        let (data, position) = unsafe { (producer.add(page), (*consumer).load(Ordering::Acquire)) };
        Ok(Ring {
            fd,
            consumer,
            producer: producer.cast(),
            data,
            size,
            position,
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Hands the next record to `take`. Its memory is the kernel's again afterwards.
    pub fn next(&mut self, take: &mut dyn FnMut(&[u8])) -> Next {
        loop {
            if !self.has_more() {
                return Next::Empty;
            }
            let at = (self.position & (self.size - 1)) as usize;
            // SAFETY: at < size, eight bytes aligned; pairs with the kernel's exchange at commit.
            let head = unsafe { (*self.data.add(at).cast::<AtomicU32>()).load(Ordering::Acquire) };
            if head & BUSY != 0 {
                return Next::Busy;
            }
            let len = u64::from(head & !DISCARD);
            assert!(len + HEADER <= self.size, "a ring record of {len} bytes");
            let discarded = head & DISCARD != 0;
            if !discarded {
                // SAFETY: at + 8 + len < 2 * size: inside the doubled data. Committed, so nobody writes
                // here until the consumer's position moves.
                take(unsafe {
                    slice::from_raw_parts(self.data.add(at + HEADER as usize), len as usize)
                });
            }
            self.position += (len + HEADER).next_multiple_of(8);
            // SAFETY: the mapped consumer position. From here on the kernel may write over the record.
            unsafe { (*self.consumer).store(self.position, Ordering::Release) };
            if !discarded {
                return Next::Record;
            }
        }
    }

    pub fn has_more(&self) -> bool {
        self.position < self.produced()
    }

    /// Where the next record will begin, in bytes since the ring was made.
    pub fn produced(&self) -> u64 {
        // SAFETY: the mapped producer position; it pairs with the kernel's release.
        unsafe { (*self.producer).load(Ordering::Acquire) }
    }

    /// Where the next record is read, likewise.
    pub fn consumed(&self) -> u64 {
        self.position
    }
}

/// An array of counters, one row per CPU.
pub struct Counters {
    words: *const AtomicU64,
    cpus: usize,
    row: usize,
}

impl Counters {
    /// `row`: counters in a row.
    pub fn map(fd: &OwnedFd, cpus: u32, row: usize) -> io::Result<Counters> {
        let cpus = cpus as usize;
        Ok(Counters {
            words: map_words(fd, cpus * row)?,
            cpus,
            row,
        })
    }

    /// All of them. The totals last, as the ledger wants it: they are in front.
    pub fn all(&self) -> Vec<u64> {
        let mut all = vec![0; self.row];
        for (index, value) in all.iter_mut().enumerate().rev() {
            *value = self.get(index);
        }
        all
    }

    /// The sum over all CPUs.
    pub fn get(&self, index: usize) -> u64 {
        assert!(index < self.row);
        (0..self.cpus)
            // SAFETY: inside the mapping of cpus * row words.
            .map(|cpu| unsafe { (*self.words.add(cpu * self.row + index)).load(Ordering::Relaxed) })
            .sum()
    }
}

/// The words by which the programs are controlled.
pub struct Control(*const AtomicU64);

impl Control {
    pub fn map(fd: &OwnedFd) -> io::Result<Control> {
        Ok(Control(map_words(fd, control::COUNT)?))
    }

    pub fn get(&self, word: usize) -> u64 {
        assert!(word < control::COUNT);
        // SAFETY: inside the mapping of COUNT words.
        unsafe { (*self.0.add(word)).load(Ordering::Relaxed) }
    }

    /// Sequentially consistent: "I am asleep" must be visible before the last look at the ring.
    pub fn set(&self, word: usize, value: u64) {
        assert!(word < control::COUNT);
        // SAFETY: inside the mapping of COUNT words.
        unsafe { (*self.0.add(word)).store(value, Ordering::SeqCst) };
    }
}

/// Maps an array map whose elements are words. The mapping stays until the process ends.
fn map_words(fd: &OwnedFd, count: usize) -> io::Result<*const AtomicU64> {
    let length = (count * 8).next_multiple_of(rustix::param::page_size());
    let both = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping of an array map that has `count` words.
    let words = unsafe {
        mmap(
            ptr::null_mut(),
            length,
            both,
            MapFlags::SHARED,
            fd.as_fd(),
            0,
        )?
    };
    Ok(words.cast_const().cast())
}
