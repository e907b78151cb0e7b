//! The ids of processes in the initial pid namespace, where ours is another one. The kernel programs and their
//! records know processes by those, `/proc`, perf events and signals by the ids here.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};

use super::{
    identity::{iterate, load_iterator},
    kernel::Layout,
    raw::Bound,
};

pub struct Ids {
    /// From ours to those of the initial namespace. 0: it is being asked for.
    map: HashMap<MapData, u32, u32>,
    /// Answers in the map.
    program: OwnedFd,
}

impl Ids {
    /// From then on the kernel side notes the ids of the children of watched processes.
    pub fn load(ebpf: &mut Ebpf, object: &Bound, layout: &Layout) -> Result<Ids> {
        let program = load_iterator(object, layout, "process_ids")?;
        let map = ebpf.take_map("IDS").context("no map IDS")?;
        let mut ids = Ids {
            map: HashMap::try_from(map)?,
            program,
        };
        let own = ids.ask(std::process::id());
        ensure!(own.is_some(), "the kernel does not say our own");
        Ok(ids)
    }

    pub fn known(&self, pid: u32) -> Option<u32> {
        self.map.get(&pid, 0).ok().filter(|id| *id != 0)
    }

    /// Asks the kernel if need be, and remembers it until [`Ids::forget`].
    pub fn learn(&mut self, pid: u32) -> Option<u32> {
        const BPF_NOEXIST: u64 = 1;
        // The kernel side may just be noting it.
        if self.map.insert(&pid, &0, BPF_NOEXIST).is_ok() {
            let _ = iterate(&self.program, 0);
        }
        let id = self.known(pid);
        if id.is_none() {
            self.forget(pid);
        }
        id
    }

    /// The same of a process whose end nobody would tell us.
    pub fn ask(&mut self, pid: u32) -> Option<u32> {
        self.known(pid).or_else(|| {
            let id = self.learn(pid);
            self.forget(pid);
            id
        })
    }

    pub fn forget(&mut self, pid: u32) {
        let _ = self.map.remove(&pid);
    }
}
