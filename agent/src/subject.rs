//! What a process is, as filters and policies judge it: as it is. What is told of it may be without its secrets, and so
//! no longer what a pattern was written for.

use crate::half::Facts;

/// Whom a filter or a policy judges. It may hold a secret, so it is told nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub executable: Option<String>,
    pub comm: Option<String>,
    /// As the runtime has it.
    pub container_id: Option<String>,
}

impl Subject {
    pub fn of(facts: &Facts) -> Subject {
        Subject {
            executable: facts.executable.clone(),
            comm: facts.comm.clone(),
            container_id: facts.container_id.clone(),
        }
    }
}
