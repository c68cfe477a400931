//! Errors that are in the command line.

use std::{error::Error, fmt};

/// Something that whoever started the program has to correct. The program ends with exit code 2, and has touched nothing.
#[derive(Debug)]
pub(crate) struct Mistake(anyhow::Error);

impl Mistake {
    pub(crate) fn new(error: impl Into<anyhow::Error>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl Error for Mistake {}
