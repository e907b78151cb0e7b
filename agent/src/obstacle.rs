//! Why a start fails, and the next one will, until a person changes something: for who starts us again and again.

use std::io;

use anyhow::Error;
use serde::{Deserialize, Serialize};

use crate::{confine::ConfineError, launch::LaunchError};

/// What stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// This kernel can't do what is needed, or it would do harm here.
    Kernel,
    /// We may not.
    Rights,
    /// What the configuration says, or how we are started.
    Configuration,
}

impl Obstacle {
    /// The exit status of a daemon, as sysexits.h has them: `EX_UNAVAILABLE`, `EX_NOPERM`, `EX_CONFIG`.
    pub const fn status(self) -> u8 {
        match self {
            Obstacle::Kernel => 69,
            Obstacle::Rights => 77,
            Obstacle::Configuration => 78,
        }
    }

    /// `error`, in the same words, of which [`Obstacle::of`] says this.
    pub fn mark(self, error: Error) -> Error {
        let obstacle = self;
        Marked { obstacle, error }.into()
    }

    /// What is in the way of who ends with this error. `None`: the next start may do better.
    pub fn of(error: &Error) -> Option<Obstacle> {
        if let Some(marked) = error.downcast_ref::<Marked>() {
            return Some(marked.obstacle);
        }
        let lacks_rights = matches!(error.downcast_ref(), Some(ConfineError::Right(_)))
            || matches!(error.downcast_ref(), Some(LaunchError::NoNewPrivs));
        lacks_rights.then_some(Obstacle::Rights)
    }
}

/// `error`, which is the kernel's if one of its causes is a refusal. Call it when our capabilities were looked at.
pub fn refused(error: Error) -> Error {
    let causes = error.chain().filter_map(|cause| cause.downcast_ref());
    let is_refused = causes.into_iter().any(is_refusal);
    match Obstacle::of(&error).is_none() && is_refused {
        true => Obstacle::Kernel.mark(error),
        false => error,
    }
}

/// The same of `error`, which says in other words what `cause` is.
pub fn refused_by(cause: &io::Error, error: Error) -> Error {
    match is_refusal(cause) {
        true => Obstacle::Kernel.mark(error),
        false => error,
    }
}

/// No memory, no descriptor, or no time is none: there may be some later.
fn is_refusal(error: &io::Error) -> bool {
    // include/linux/errno.h; libc has none.
    const ENOTSUPP: i32 = 524;
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPERM
                | libc::EACCES
                | libc::EINVAL
                | libc::E2BIG
                | libc::ENOSYS
                | libc::EOPNOTSUPP
                | ENOTSUPP
        )
    )
}

/// No source: `error` says all of it.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
struct Marked {
    obstacle: Obstacle,
    error: Error,
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    fn of_kernel(code: i32) -> Option<Obstacle> {
        let cause = io::Error::from_raw_os_error(code);
        let told = Obstacle::of(&refused_by(&cause, anyhow!("load a program")));
        let chain = Error::from(cause)
            .context("load a program")
            .context("start");
        assert_eq!(Obstacle::of(&refused(chain)), told, "{code}");
        told
    }

    #[test]
    fn what_the_kernel_refuses_it_refuses_again() {
        for code in [
            libc::EPERM,
            libc::EACCES,
            libc::EINVAL,
            libc::E2BIG,
            libc::ENOSYS,
            libc::EOPNOTSUPP,
            524,
        ] {
            assert_eq!(of_kernel(code), Some(Obstacle::Kernel), "{code}");
        }
        for code in [
            libc::ENOMEM,
            libc::EAGAIN,
            libc::EINTR,
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOSPC,
            libc::EIO,
            libc::EBUSY,
        ] {
            assert_eq!(of_kernel(code), None, "{code}");
        }
        assert_eq!(Obstacle::of(&refused(anyhow!("no cause is known"))), None);
    }

    #[test]
    fn a_mark_changes_no_word_and_is_found_below_others() {
        let error = || {
            Error::from(io::Error::from_raw_os_error(libc::ENOENT)).context("look for something")
        };
        let words = format!("start: {:#}", error());
        let marked = Err::<(), _>(Obstacle::Configuration.mark(error())).context("start");
        let marked = marked.unwrap_err();
        assert_eq!(format!("{marked:#}"), words);
        assert_eq!(Obstacle::of(&marked), Some(Obstacle::Configuration));
        let again = refused(Obstacle::Rights.mark(io::Error::from_raw_os_error(1).into()));
        assert_eq!(
            Obstacle::of(&again),
            Some(Obstacle::Rights),
            "the first one"
        );
    }

    #[test]
    fn rights_by_the_error_itself() {
        for error in [
            Error::from(ConfineError::Right("CAP_SETUID")),
            Error::from(LaunchError::NoNewPrivs),
        ] {
            assert_eq!(Obstacle::of(&error), Some(Obstacle::Rights), "{error}");
        }
        let other = Error::from(LaunchError::Internal);
        assert_eq!(Obstacle::of(&other), None);
    }
}
