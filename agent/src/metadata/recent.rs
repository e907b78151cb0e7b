//! Containers that were made of late: their runtime told of them then, and may not know them any more when somebody asks.

use std::collections::{HashMap, VecDeque};

use super::{CONTAINERS_MAX, Container};

/// What a runtime tells when a container is made.
#[derive(Debug, PartialEq, Eq)]
pub struct Made {
    pub id: String,
    /// Where it says more than that.
    pub container: Option<Container>,
}

/// The last ones.
#[derive(Debug, Default)]
pub struct Recent {
    containers: HashMap<String, Container>,
    /// The oldest first.
    ids: VecDeque<String>,
}

impl Recent {
    pub fn remember(&mut self, id: String, container: Container) {
        if self.containers.insert(id.clone(), container).is_some() {
            return;
        }
        self.ids.push_back(id);
        if self.ids.len() > CONTAINERS_MAX
            && let Some(oldest) = self.ids.pop_front()
        {
            self.containers.remove(&oldest);
        }
    }

    pub fn get(&self, id: &str) -> Option<&Container> {
        self.containers.get(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let mut recent = Recent::default();
        for number in 0..=CONTAINERS_MAX {
            let name = Some(format!("a{number}"));
            for id in [number, number] {
                let name = name.clone();
                recent.remember(
                    id.to_string(),
                    Container {
                        name,
                        ..Container::default()
                    },
                );
            }
        }
        assert_eq!(recent.get("0"), None);
        assert_eq!(recent.get("1").unwrap().name.as_deref(), Some("a1"));
        assert_eq!(recent.containers.len(), CONTAINERS_MAX);
        assert_eq!(recent.ids.len(), CONTAINERS_MAX);
    }
}
