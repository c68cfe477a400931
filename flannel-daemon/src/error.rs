//! Errors in what a daemon was asked to do.

use std::{error::Error, fmt};

/// Something in the options that whoever started the program has to correct. Nothing was touched.
#[derive(Debug)]
pub struct InvalidOptions(anyhow::Error);

impl InvalidOptions {
    /// Wraps the reason.
    pub fn new(reason: impl Into<anyhow::Error>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for InvalidOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl Error for InvalidOptions {}
