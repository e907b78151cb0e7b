//! The control groups that the kernel side asks for by itself: which of its slots holds which.

use std::os::fd::OwnedFd;

use agent_ebpf::GROUPS;
use anyhow::{Result, bail};
use rustix::fs::{fstat, fstatfs};

use super::link::Kernel;

/// What tells a group from others: one that was made again under its name is another one.
type Identity = (u64, u64);

#[derive(Default)]
pub struct Groups {
    slots: [Option<Identity>; GROUPS as usize],
    /// Those of the filter that is about to come.
    next: Vec<(Identity, OwnedFd)>,
}

impl Groups {
    pub fn expect(&mut self, directory: OwnedFd) -> Result<()> {
        const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270; // linux/magic.h
        if fstatfs(&directory)?.f_type != CGROUP2_SUPER_MAGIC {
            bail!("a control group that is none");
        }
        if self.next.len() == self.slots.len() {
            bail!("more control groups than the kernel side asks for");
        }
        let stat = fstat(&directory)?;
        self.next.push(((stat.st_dev, stat.st_ino), directory));
        Ok(())
    }

    /// Is this kind of filter active before the change and after it?
    pub fn stay_active(&self) -> bool {
        self.slots.iter().any(Option::is_some) && !self.next.is_empty()
    }

    /// Takes those out that are wanted no more.
    pub fn narrow(&mut self, kernel: &mut Kernel) -> Result<()> {
        let Groups { slots, next } = self;
        for (slot, held) in (0..).zip(slots) {
            let is_wanted = |id| next.iter().any(|(wanted, _)| *wanted == id);
            if held.is_some_and(|id| !is_wanted(id)) {
                kernel.set_group(slot, None)?;
                *held = None;
            }
        }
        Ok(())
    }

    /// Puts those in that are missing; there is room when the others are out. Gives the first error: a group may be gone
    /// by now, and so is whoever was in it.
    pub fn fill(&mut self, kernel: &mut Kernel) -> Result<()> {
        let mut filled = Ok(());
        let Groups { slots, next } = self;
        for (id, directory) in next {
            if slots.contains(&Some(*id)) {
                continue;
            }
            let Some(slot) = slots.iter().position(Option::is_none) else {
                break;
            };
            match kernel.set_group(slot as u32, Some(directory)) {
                Ok(()) => slots[slot] = Some(*id),
                Err(error) => filled = filled.and(Err(error)),
            }
        }
        filled
    }

    /// The filter has come.
    pub fn settled(&mut self) {
        self.next.clear();
    }
}
