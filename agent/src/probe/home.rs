//! Through which mounts a file is used. A link keeps the mount of the path that it was made by, so a
//! container that ends leaves its mount behind as long as others use the same file through theirs: the
//! probes then have to move to one of those.

use std::collections::HashMap;

use super::mapping::Mapping;
use crate::half::FileId;

/// Who uses which file, by process.
#[derive(Default)]
pub struct Homes(HashMap<u32, HashMap<FileId, Use>>);

struct Use {
    /// By its number, which is unique as long as the mount lives.
    mount: u64,
    mapping: Mapping,
}

impl Homes {
    pub fn add(&mut self, file: FileId, mount: u64, mapping: &Mapping) {
        let files = self.0.entry(mapping.pid).or_default();
        files.entry(file).or_insert_with(|| Use {
            mount,
            mapping: mapping.clone(),
        });
    }

    /// A child has its parent's mappings, and no event says so.
    pub fn fork(&mut self, parent: u32, child: u32) {
        let Some(files) = self.0.get(&parent) else {
            return;
        };
        let inherited = files.iter().map(|(file, of)| {
            let mapping = Mapping {
                pid: child,
                ..of.mapping.clone()
            };
            let mount = of.mount;
            (*file, Use { mount, mapping })
        });
        let inherited = inherited.collect();
        self.0.insert(child, inherited);
    }

    pub fn forget(&mut self, pid: u32) {
        self.0.remove(&pid);
    }

    pub fn drop_file(&mut self, file: FileId) {
        for files in self.0.values_mut() {
            files.remove(&file);
        }
        self.0.retain(|_, files| !files.is_empty());
    }

    /// The two are one file.
    pub fn same(&mut self, file: FileId, known: FileId) {
        for files in self.0.values_mut() {
            if let Some(of) = files.remove(&file) {
                files.entry(known).or_insert(of);
            }
        }
    }

    /// Where the probes of a file should move that were placed through `mount`: a mapping of somebody who
    /// uses it through another one, if nobody uses it through this one any more.
    pub fn next(&self, file: FileId, mount: u64) -> Option<&Mapping> {
        let mut uses = self.0.values().filter_map(|files| files.get(&file));
        let first = uses.next().filter(|of| of.mount != mount)?;
        uses.all(|of| of.mount != mount).then_some(&first.mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(pid: u32) -> Mapping {
        Mapping {
            pid,
            address: 0x1000,
            length: 0x1000,
            offset: 0,
            major: 0,
            minor: 1,
            inode: 1,
            at: None,
            path: String::new(),
        }
    }

    #[test]
    fn probes_move_when_the_last_user_of_their_mount_is_gone() {
        let mut homes = Homes::default();
        homes.add(1, 10, &mapping(100));
        homes.add(1, 20, &mapping(200));
        homes.add(2, 10, &mapping(300));
        homes.fork(100, 101);
        homes.forget(100);
        assert_eq!(homes.next(1, 10), None, "the child uses it still");
        homes.forget(101);
        assert_eq!(homes.next(1, 10).map(|mapping| mapping.pid), Some(200));
        assert_eq!(homes.next(1, 20), None);
        assert_eq!(homes.next(2, 10), None);
        homes.forget(200);
        assert_eq!(homes.next(1, 10), None, "there is nowhere to go");
        homes.same(2, 1);
        homes.drop_file(1);
        assert!(homes.0.is_empty());
    }
}
