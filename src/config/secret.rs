//! What may be used and never shown.

use std::fmt;

/// A value that no debug print shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(pub T);

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// How clap reads one.
impl From<String> for Secret<String> {
    fn from(stated: String) -> Self {
        Self(stated)
    }
}
